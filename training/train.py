"""A whole training run: float network, then the quantized stages of a recipe, each saved as it ends.

    RUN/float.safetensors          the float network
    RUN/w4a4.safetensors           intervals learned at 4/4 bits, fake quantization
    RUN/w4a4_frozen.safetensors    the same, frozen and trained on with the runtime's arithmetic; to be exported
    RUN/best/                      the same names, as they were after their best epoch on the test set
    RUN/state.safetensors          the middle of the present phase (`run_state`)
    RUN/metrics.jsonl              one line per epoch
    RUN/curves/                    TensorBoard: loss, accuracy, every interval
    RUN/recipe.json                the recipe

`resume` skips the phases whose checkpoint is there, and goes on in the middle of the one whose state is. In several
processes (`accelerate launch`, `torchrun`) each takes its rows of every batch; the first one writes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from qil_deploy.calibration import calibrate, estimate_batchnorm
from qil_deploy.checkpoint import CheckpointInfo, load_model, load_tensors, read_checkpoint, save_checkpoint
from qil_deploy.datasets import ImageSet, load_images, preprocessing_for
from qil_deploy.errors import ConfigError, DataError
from qil_deploy.files import ensure_writable, write_text
from qil_deploy.freezing import freeze
from qil_deploy.freezing_report import predictions
from qil_deploy.preparation import prepare
from qil_deploy.preprocessing import Preprocessing

from .data import ArrayBatches, Share, to_input
from .loop import EpochMetrics, Loss, Phase, Reports, StepMetrics, make_optimizers, train_phase
from .models import build_model, memory_format_for
from .recipe import OptimizerSection, Recipe, StageSection
from .run_state import Learner, Position, load_state, remove_state, save_state

CALIBRATION_BATCHES = 8

METRICS_NAME = "metrics.jsonl"

Kind = Literal["float", "quantized", "frozen"]
Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run is carried out; unlike the recipe, this may change from one start to the next.

    Attributes:
        mixed_precision: of convolutions and linear layers; quantizers and frozen phases stay float32.
        save_minutes: how often the middle of a phase is kept, at the least.
    """

    mixed_precision: Precision = "no"
    save_minutes: float = 10.0


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """Where one stage's checkpoints are and what they reach on the test set, in percent.

    `frozen`, `frozen_at_once` and `frozen_accuracy` are None for a stage without frozen epochs.
    """

    name: str
    checkpoint: Path
    accuracy: float
    frozen: Path | None = None
    frozen_at_once: float | None = None
    frozen_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Results of a run: the float network first, then the stages in order."""

    float_result: StageResult
    stages: tuple[StageResult, ...]


class Run:
    """What all phases of one run share: recipe, data, output folder, processes, progress."""

    def __init__(
        self, recipe: Recipe, folder: Path, progress: Progress, accelerator: Accelerator, *, resume: bool,
        settings: Settings,
    ) -> None:  # fmt: skip
        self.recipe = recipe
        self.folder = folder
        self.progress = progress
        self.accelerator = accelerator
        self.resume = resume
        self.settings = settings
        self.share = Share(rank=accelerator.process_index, of=accelerator.num_processes)
        self.train_set = load_images(recipe.data, "train")
        self.test_set = load_images(recipe.data, "test", shape=self.train_set.images.shape[1:])
        _check_classes(self.train_set, self.test_set)
        self.preprocessing: Preprocessing = preprocessing_for(recipe.data, self.train_set)
        self.model_arguments: dict[str, Any] = {
            "in_channels": self.preprocessing.channels,
            "num_classes": len(self.train_set.class_names),
        }
        if recipe.model.width is not None:
            self.model_arguments["width"] = recipe.model.width

    def build(self) -> nn.Module:
        """Return the float network of the recipe, its weights seeded."""
        torch.manual_seed(self.recipe.seed)
        model = build_model(self.recipe.model.name, self.model_arguments)
        return model.to(memory_format=memory_format_for(model))

    def prepare(self, model: nn.Module, stage: StageSection, example: Tensor) -> fx.GraphModule:
        """Return a float network with the quantizers of a stage in it."""
        return prepare(model, self.recipe.quant_config(stage), example, input_grid=self.preprocessing)

    def batches(self, batch_size: int, phase: int, share: Share | None = None) -> ArrayBatches:
        """Return the training batches of one phase, which has a seed of its own."""
        augmentation = self.recipe.augmentation
        return ArrayBatches(
            self.train_set,
            self.preprocessing,
            batch_size=batch_size,
            flip=augmentation.flip,
            shift=augmentation.shift,
            seed=self.recipe.seed * 1000 + phase,
            share=share or self.share,
        )

    def whole_batches(self, count: int, batch_size: int, phase: int) -> list[Tensor]:
        """Return the first inputs of a phase, whole: what every process sets intervals and statistics from."""
        batches = self.batches(batch_size, phase, Share())
        count = min(count, len(batches))
        return [x.to(self.accelerator.device) for _, (x, _) in zip(range(count), batches.epoch(0), strict=False)]

    def path(self, name: str) -> Path:
        """Return the checkpoint path of a phase."""
        return self.folder / f"{name}.safetensors"

    def done(self, name: str) -> bool:
        """Whether a phase can be skipped because an earlier start has finished it."""
        return self.resume and self.path(name).is_file()

    def accuracy(self, model: nn.Module) -> float:
        """Top-1 accuracy on the test set, in percent; every process takes its share of the images."""
        share = slice(self.share.rank, None, self.share.of)
        found = predictions(model, self.test_set.images[share], self.preprocessing)
        right = torch.tensor(float((found == self.test_set.labels[share]).sum()), device=self.accelerator.device)
        return 100.0 * float(self.accelerator.reduce(right, "sum")) / len(self.test_set)

    def predictions(self, model: nn.Module) -> NDArray[np.int64]:
        """Class of each test image."""
        return predictions(model, self.test_set.images, self.preprocessing)

    def fit(
        self,
        model: nn.Module,
        section: OptimizerSection,
        name: str,
        phase: int,
        checkpoint: CheckpointInfo,
        loss: Loss | None = None,
    ) -> float:
        """Train `model` in place, from where an earlier start left it; return its accuracy on the test set.

        Args:
            model: as the phase begins.
            section: schedule and optimizers.
            name: of the phase.
            phase: number of the phase, from which its seed follows.
            checkpoint: what the checkpoint of its best epoch says about itself.
            loss: what is minimised; None for cross-entropy.
        """
        model.to(self.accelerator.device)
        averaging = None if section.average is None else get_ema_multi_avg_fn(section.average)
        average = None if averaging is None else AveragedModel(model, multi_avg_fn=averaging)
        learner = Learner(model=model, optimizers=make_optimizers(model, section), average=average)
        position = (load_state(self.folder, name, learner) if self.resume else None) or Position()
        with PhaseRecord(self, name, learner, checkpoint, position) as record:
            train_phase(
                Phase(
                    name=name,
                    batches=self.batches(section.batch_size, phase),
                    section=section,
                    seed=self.recipe.seed * 1000 + phase,
                    loss=loss or partial(_cross_entropy, smoothing=section.label_smoothing),
                ),
                learner,
                Reports(
                    evaluate=self.accuracy,
                    on_step=record.on_step,
                    on_epoch=record.on_epoch,
                    save=record.save,
                    save_seconds=60.0 * self.settings.save_minutes,
                ),
                position=position,
                accelerator=self.accelerator,
                progress=self.progress,
            )
        if average is not None:
            model.load_state_dict(average.module.state_dict())
        if section.batchnorm_batches:
            estimate_batchnorm(model, self.whole_batches(section.batchnorm_batches, section.batch_size, phase))
        return self.accuracy(model)

    def info(self, kind: Kind, stage: StageSection | None, **metrics: float) -> CheckpointInfo:
        """Return what a checkpoint of this run says about itself."""
        return CheckpointInfo(
            kind=kind,
            model_name=self.recipe.model.name,
            model_arguments=self.model_arguments,
            config=None if stage is None else self.recipe.quant_config(stage),
            preprocessing=self.preprocessing,
            data=self.recipe.data,
            class_names=self.train_set.class_names,
            metrics=metrics,
        )

    def save(self, name: str, info: CheckpointInfo, model: nn.Module) -> None:
        """Write the checkpoint of a finished phase, whose state is needed no longer."""
        if self.accelerator.is_main_process:
            save_checkpoint(self.path(name), info, model)
            remove_state(self.folder)
        self.accelerator.wait_for_everyone()

    def metrics(self, name: str) -> dict[str, float]:
        """Return the metrics of a finished phase."""
        return read_checkpoint(self.path(name))[0].metrics


class PhaseRecord:
    """What one phase leaves in the run's folder while it goes on; the main process writes."""

    def __init__(self, run: Run, name: str, learner: Learner, checkpoint: CheckpointInfo, position: Position) -> None:
        self.run, self.name, self.learner, self.checkpoint = run, name, learner, checkpoint
        self.writes = run.accelerator.is_main_process
        if self.writes:
            drop_metrics(run.folder / METRICS_NAME, name, position.epoch)

    def __enter__(self) -> PhaseRecord:
        """Return itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """End the phase."""

    def on_step(self, metrics: StepMetrics) -> None:
        """Note a step."""

    def on_epoch(self, metrics: EpochMetrics, position: Position) -> None:
        """Note an epoch, and keep the network if it is the best so far."""
        if not self.writes:
            return
        with (self.run.folder / METRICS_NAME).open("a") as stream:
            stream.write(json.dumps({"phase": self.name, **asdict(metrics)}) + "\n")
        self.run.progress.console.print(
            f"{self.name} epoch {metrics.epoch}: loss {metrics.loss:.4f}, train {metrics.train_accuracy:.2f} %, "
            f"test {metrics.test_accuracy:.2f} %, {metrics.seconds:.0f} s"
        )
        if metrics.test_accuracy > position.best:
            info = self.checkpoint.model_copy(update={"metrics": {"accuracy": metrics.test_accuracy}})
            save_checkpoint(self.run.folder / "best" / f"{self.name}.safetensors", info, self.learner.model)

    def save(self, position: Position) -> None:
        """Keep a position to go on from."""
        if self.writes:
            save_state(self.run.folder, self.name, position, self.learner)


def drop_metrics(path: Path, phase: str, epoch: int) -> None:
    """Remove the lines of a phase from `epoch` on: they come again."""
    if not path.is_file():
        return
    lines = [(json.loads(line), line) for line in path.read_text().splitlines()]
    kept = [line for entry, line in lines if entry["phase"] != phase or entry["epoch"] < epoch]
    if len(kept) < len(lines):
        write_text(path, "".join(f"{line}\n" for line in kept))


def _cross_entropy(logits: Tensor, _x: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


def train(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    settings: Settings = Settings(),
    progress: Progress | None = None,
) -> RunResult:
    """Carry out a recipe.

    Args:
        recipe: what to train.
        folder: where checkpoints and metrics go; created if missing.
        resume: continue a run that was interrupted, where it last was kept.
        settings: precision, and how often the run is kept.
        progress: a started progress display; one is made if None.

    Raises:
        ConfigError: an unknown network, an override that matches no layer, a folder that holds a run (and `resume` is
            false) or a run of another recipe.
        TrainingError: training diverged.
        CheckpointError: what is to be resumed is damaged.
        DataError: the data set is unknown or missing.
        UnsupportedModelError: the network cannot be quantized.
        OutputError: the folder cannot be written.
    """
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    if progress is None:
        with Progress(disable=not accelerator.is_main_process) as own:
            return train(recipe, folder, resume=resume, settings=settings, progress=own)
    return carry_out(Run(recipe, folder, progress, accelerator, resume=resume, settings=settings))


def carry_out(run: Run) -> RunResult:
    """Train all phases of a run; arguments and errors as in `train`."""
    run.build()
    for stage in run.recipe.stages:  # a stage that cannot be prepared should not wait for the float network
        _prepared(run, stage)
    if run.accelerator.is_main_process:
        _claim_folder(run.recipe, run.folder, resume=run.resume)
    run.accelerator.wait_for_everyone()
    float_result = _float_phase(run)
    stages = []
    previous = float_result
    for index, stage in enumerate(run.recipe.stages):
        result = _quantized_phase(run, stage, index, float_result if stage.from_float else previous)
        if stage.frozen_epochs:
            result = _frozen_phase(run, stage, index, result)
        stages.append(result)
        previous = result
    return RunResult(float_result=float_result, stages=tuple(stages))


def _claim_folder(recipe: Recipe, folder: Path, *, resume: bool) -> None:
    """Write the recipe into the run's folder, or check that the folder's run has the same one."""
    kept = folder / "recipe.json"
    ensure_writable(kept)
    content = recipe.model_dump_json(indent=2) + "\n"
    if resume and kept.is_file() and kept.read_text() != content:
        raise ConfigError(f"{folder} holds a run of another recipe (see {kept.name}); choose another --out.")
    if not resume and any(folder.glob("*.safetensors")):
        raise ConfigError(f"{folder} already holds a run; continue it with --resume or choose another --out.")
    write_text(kept, content)


def _check_classes(train_set: ImageSet, test_set: ImageSet) -> None:
    """Raise DataError if the labels of both sets do not mean the same."""
    if train_set.class_names != test_set.class_names:
        raise DataError(
            f"the training images have the classes {', '.join(train_set.class_names)}, but the test images "
            f"{', '.join(test_set.class_names)}; both need the same."
        )


def _float_phase(run: Run) -> StageResult:
    if not run.done("float"):
        model = run.build()
        accuracy = run.fit(model, run.recipe.float_training, "float", 0, run.info("float", None))
        run.save("float", run.info("float", None, accuracy=accuracy), model)
    return StageResult(name="float", checkpoint=run.path("float"), accuracy=run.metrics("float")["accuracy"])


def _prepared(run: Run, stage: StageSection) -> fx.GraphModule:
    example = to_input(torch.zeros(1, *run.preprocessing.shape, dtype=torch.uint8), run.preprocessing)
    return run.prepare(run.build(), stage, example)


def _quantized_phase(run: Run, stage: StageSection, index: int, previous: StageResult) -> StageResult:
    """Train one stage, from the float network (intervals then start from data) or from the stage before."""
    if not run.done(stage.name):
        model = _starting_point(run, stage, index, previous)
        accuracy = run.fit(model, stage, stage.name, 200 + index, run.info("quantized", stage))
        run.save(stage.name, run.info("quantized", stage, accuracy=accuracy), model)
    return StageResult(name=stage.name, checkpoint=run.path(stage.name), accuracy=run.metrics(stage.name)["accuracy"])


def _starting_point(run: Run, stage: StageSection, index: int, previous: StageResult) -> fx.GraphModule:
    _, tensors = read_checkpoint(previous.checkpoint)
    if previous.name != "float":
        model = _prepared(run, stage)
        load_tensors(model, tensors, str(previous.checkpoint))
        return model
    float_model = run.build()
    load_tensors(float_model, tensors, str(previous.checkpoint))
    batches = run.whole_batches(CALIBRATION_BATCHES, stage.batch_size, 100 + index)
    model = run.prepare(float_model.to(run.accelerator.device), stage, batches[0])
    calibrate(model, batches)
    return model


def _frozen_phase(run: Run, stage: StageSection, index: int, result: StageResult) -> StageResult:
    """Freeze a trained stage and train on with the runtime's arithmetic; the unfrozen checkpoint stays."""
    name = f"{stage.name}_frozen"
    if not run.done(name):
        _, prepared = load_model(result.checkpoint, build_model)
        if not isinstance(prepared, fx.GraphModule):
            raise TypeError(f"{result.checkpoint} holds no prepared model")
        model = freeze(prepared)
        before, at_once = run.predictions(prepared), run.predictions(model)
        section = OptimizerSection(
            epochs=stage.frozen_epochs,
            batch_size=stage.batch_size,
            learning_rate=stage.frozen_learning_rate,
            weight_decay=stage.weight_decay,
            interval_learning_rate=stage.interval_learning_rate * stage.frozen_learning_rate / stage.learning_rate,
            label_smoothing=stage.label_smoothing,
        )
        accuracy = run.fit(model, section, name, 300 + index, run.info("frozen", stage))
        info = run.info(
            "frozen",
            stage,
            accuracy=accuracy,
            accuracy_before_freezing=result.accuracy,
            accuracy_frozen_at_once=100.0 * float((at_once == run.test_set.labels).mean()),
            test_images=float(len(run.test_set)),
            changed_predictions_at_once=float((before != at_once).sum()),
            changed_predictions=float((before != run.predictions(model)).sum()),
        )
        run.save(name, info, model)
    metrics = run.metrics(name)
    return replace(
        result,
        frozen=run.path(name),
        frozen_at_once=metrics["accuracy_frozen_at_once"],
        frozen_accuracy=metrics["accuracy"],
    )
