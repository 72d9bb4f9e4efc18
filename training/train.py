"""A whole training run: float network, then the quantized stages of a recipe, each saved as it ends.

    RUN/float.safetensors          the float network
    RUN/w4a4.safetensors           intervals learned at 4/4 bits, fake quantization
    RUN/w4a4_frozen.safetensors    the same, frozen and trained on with the runtime's arithmetic; to be exported
    RUN/metrics.jsonl              one line per epoch
    RUN/recipe.json                the recipe

`resume` skips the phases whose checkpoint is there.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import fx, nn

from qil_deploy.calibration import calibrate
from qil_deploy.checkpoint import CheckpointInfo, load_model, load_tensors, read_checkpoint, save_checkpoint
from qil_deploy.datasets import ImageSet, load_images, preprocessing_for
from qil_deploy.errors import ConfigError, DataError
from qil_deploy.files import ensure_writable, write_text
from qil_deploy.freezing import freeze
from qil_deploy.freezing_report import predictions
from qil_deploy.preparation import prepare
from qil_deploy.preprocessing import Preprocessing

from . import loop
from .data import TrainingBatches, to_input
from .loop import EpochMetrics, train_epochs
from .models import build_model, memory_format_for
from .recipe import OptimizerSection, Recipe, StageSection

CALIBRATION_BATCHES = 8

Kind = Literal["float", "quantized", "frozen"]


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
    """What all phases of one run share: recipe, data, output folder, progress."""

    def __init__(self, recipe: Recipe, folder: Path, progress: Progress, *, resume: bool) -> None:
        self.recipe = recipe
        self.folder = folder
        self.progress = progress
        self.resume = resume
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

    def batches(self, batch_size: int, phase: int) -> TrainingBatches:
        """Return the training batches of one phase, which has a seed of its own: a resumed run repeats them."""
        generator = torch.Generator().manual_seed(self.recipe.seed * 1000 + phase)
        augmentation = self.recipe.augmentation
        return TrainingBatches(
            self.train_set,
            self.preprocessing,
            batch_size=batch_size,
            flip=augmentation.flip,
            shift=augmentation.shift,
            generator=generator,
        )

    def path(self, name: str) -> Path:
        """Return the checkpoint path of a phase."""
        return self.folder / f"{name}.safetensors"

    def done(self, name: str) -> bool:
        """Whether a phase can be skipped because an earlier start has finished it."""
        return self.resume and self.path(name).is_file()

    def accuracy(self, model: nn.Module) -> float:
        """Top-1 accuracy on the test set, in percent."""
        return loop.accuracy(model, self.test_set, self.preprocessing)

    def predictions(self, model: nn.Module) -> NDArray[np.int64]:
        """Class of each test image."""
        return predictions(model, self.test_set.images, self.preprocessing)

    def fit(self, model: nn.Module, section: OptimizerSection, name: str, phase: int) -> float:
        """Train `model` in place, one line per epoch in the metrics file; return its accuracy on the test set."""
        accuracies: list[float] = []

        def on_epoch(metrics: EpochMetrics) -> None:
            accuracies.append(metrics.test_accuracy)
            with (self.folder / "metrics.jsonl").open("a") as stream:
                stream.write(json.dumps({"phase": name, **asdict(metrics)}) + "\n")
            self.progress.console.print(
                f"{name} epoch {metrics.epoch}: loss {metrics.loss:.4f}, "
                f"train {metrics.train_accuracy:.2f} %, test {metrics.test_accuracy:.2f} %, {metrics.seconds:.0f} s"
            )

        batches = self.batches(section.batch_size, phase)
        train_epochs(model, batches, self.test_set, section, title=name, progress=self.progress, on_epoch=on_epoch)
        return accuracies[-1] if accuracies else self.accuracy(model)

    def save(self, name: str, kind: Kind, model: nn.Module, stage: StageSection | None, **metrics: float) -> None:
        """Write the checkpoint of a phase."""
        info = CheckpointInfo(
            kind=kind,
            model_name=self.recipe.model.name,
            model_arguments=self.model_arguments,
            config=None if stage is None else self.recipe.quant_config(stage),
            preprocessing=self.preprocessing,
            data=self.recipe.data,
            class_names=self.train_set.class_names,
            metrics=metrics,
        )
        save_checkpoint(self.path(name), info, model)

    def metrics(self, name: str) -> dict[str, float]:
        """Return the metrics of a finished phase."""
        return read_checkpoint(self.path(name))[0].metrics


def train(recipe: Recipe, folder: Path, *, resume: bool = False, progress: Progress | None = None) -> RunResult:
    """Carry out a recipe.

    Args:
        recipe: what to train.
        folder: where checkpoints and metrics go; created if missing.
        resume: continue a run that was interrupted, after its last finished phase.
        progress: a started progress display; one is made if None.

    Raises:
        ConfigError: an unknown network, an override that matches no layer, a folder that holds a run (and `resume` is
            false) or a run of another recipe; or training diverged.
        DataError: the data set is unknown or missing.
        UnsupportedModelError: the network cannot be quantized.
        OutputError: the folder cannot be written.
    """
    if progress is None:
        with Progress() as own:
            return train(recipe, folder, resume=resume, progress=own)
    run = Run(recipe, folder, progress, resume=resume)
    run.build()
    for stage in recipe.stages:  # a stage that cannot be prepared should not wait for the float network
        _prepared(run, stage)
    _claim_folder(recipe, folder, resume=resume)
    float_result = _float_phase(run)
    stages = []
    previous = float_result
    for index, stage in enumerate(recipe.stages):
        result = _quantized_phase(run, stage, index, previous)
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
        accuracy = run.fit(model, run.recipe.float_training, "float", phase=0)
        run.save("float", "float", model, None, accuracy=accuracy)
    return StageResult(name="float", checkpoint=run.path("float"), accuracy=run.metrics("float")["accuracy"])


def _prepared(run: Run, stage: StageSection) -> fx.GraphModule:
    model = run.build()
    example = to_input(torch.zeros(1, *run.preprocessing.shape, dtype=torch.uint8), run.preprocessing)
    return prepare(model, run.recipe.quant_config(stage), example, input_grid=run.preprocessing)


def _quantized_phase(run: Run, stage: StageSection, index: int, previous: StageResult) -> StageResult:
    """Train one stage, from the float network (intervals then start from data) or from the stage before."""
    if not run.done(stage.name):
        batches = run.batches(stage.batch_size, phase=100 + index)
        _, tensors = read_checkpoint(previous.checkpoint)
        if previous.name == "float":
            float_model = run.build()
            load_tensors(float_model, tensors, str(previous.checkpoint))
            model = prepare(
                float_model,
                run.recipe.quant_config(stage),
                next(batches.epoch())[0],
                input_grid=run.preprocessing,
            )
            epoch = batches.epoch()
            calibrate(model, [next(epoch)[0] for _ in range(min(CALIBRATION_BATCHES, len(batches)))])
        else:
            model = _prepared(run, stage)
            load_tensors(model, tensors, str(previous.checkpoint))
        accuracy = run.fit(model, stage, stage.name, phase=200 + index)
        run.save(stage.name, "quantized", model, stage, accuracy=accuracy)
    return StageResult(name=stage.name, checkpoint=run.path(stage.name), accuracy=run.metrics(stage.name)["accuracy"])


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
        )
        accuracy = run.fit(model, section, name, phase=300 + index)
        run.save(
            name,
            "frozen",
            model,
            stage,
            accuracy=accuracy,
            accuracy_before_freezing=result.accuracy,
            accuracy_frozen_at_once=100.0 * float((at_once == run.test_set.labels).mean()),
            test_images=float(len(run.test_set)),
            changed_predictions_at_once=float((before != at_once).sum()),
            changed_predictions=float((before != run.predictions(model)).sum()),
        )
    metrics = run.metrics(name)
    return replace(
        result,
        frozen=run.path(name),
        frozen_at_once=metrics["accuracy_frozen_at_once"],
        frozen_accuracy=metrics["accuracy"],
    )
