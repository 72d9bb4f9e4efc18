"""One run of training: what its phases share, how one of them is fitted, and what is kept of it meanwhile."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from qil_deploy.checkpoint import CheckpointInfo, read_info, save_checkpoint
from qil_deploy.network import estimate_batchnorm, prepare
from qil_deploy.terminal import Progress

from .data import Batches, RunData, Share, load_run_data
from .fit import EpochMetrics, Loss, Phase, Reports, StepMetrics, make_optimizers, train_phase
from .metrics_file import append_epoch, drop_epochs
from .models import memory_format_for, model_builder
from .pictures import Curves
from .quantizer_only import TeacherLoss, quantizer_optimizers
from .recipe import OptimizerSection, Recipe, StageSection
from .run_folder import BEST_NAME, check_finished
from .run_state import Extent, Learner, Position, load_state, remove_state, save_state

CURVE_STEPS, INTERVAL_STEPS = 10, 50

Kind = Literal["float", "quantized", "frozen"]
Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run is carried out; unlike the recipe, this may change from one start to the next.

    Attributes:
        mixed_precision: of convolutions and linear layers; quantizers and frozen phases stay float32.
        save_minutes: how often the middle of a phase is kept, at the least.
        workers: processes that decode the images of a folder.
    """

    mixed_precision: Precision = "no"
    save_minutes: float = 10.0
    workers: int = 4


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
        self.data: RunData = load_run_data(recipe, settings.workers)
        self.preprocessing = self.data.preprocessing
        # Whoever starts a run types its recipe: the network it names may be built.
        self.builder = model_builder(recipe.model.name)
        self.model_arguments: dict[str, Any] = {
            "in_channels": self.preprocessing.channels,
            "num_classes": len(self.data.class_names),
        }
        if recipe.model.width is not None:
            self.model_arguments["width"] = recipe.model.width
        if self.data.teacher is not None:
            self.model_arguments = self.data.teacher.info.model_arguments

    def build(self) -> nn.Module:
        """Return the float network of the recipe, its weights seeded, in training mode."""
        torch.manual_seed(self.recipe.seed)
        model = self.builder(self.recipe.model.name, self.model_arguments)
        return model.to(memory_format=memory_format_for(model)).train()

    def prepare(self, model: nn.Module, stage: StageSection, example: Tensor) -> fx.GraphModule:
        """Return a float network with the quantizers of a stage in it."""
        return prepare(model, self.recipe.quant_config(stage), example, input_grid=self.preprocessing)

    def batches(self, batch_size: int, phase: int, share: Share | None = None) -> Batches:
        """Return the training batches of one phase, which has a seed of its own."""
        return self.data.batches(batch_size, self.recipe.seed * 1000 + phase, share or self.share)

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
        """Top-1 accuracy on the test set, in percent."""
        return self.data.accuracy(model, self.accelerator)

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
            loss: what is minimised; None for what the recipe says.
        """
        model.to(self.accelerator.device)
        averaging = None if section.average is None else get_ema_multi_avg_fn(section.average)
        average = None if averaging is None else AveragedModel(model, multi_avg_fn=averaging)
        optimizers = self.optimizers(model, section) if section.epochs > 0 else []
        learner = Learner(model=model, optimizers=optimizers, average=average)
        batches = self.batches(section.batch_size, phase)
        extent = Extent(epochs=section.epochs, batches=len(batches), batch_size=section.batch_size)
        position = (load_state(self.folder, name, learner, extent) if self.resume else None) or Position()
        with PhaseRecord(self, name, learner, checkpoint, position) as record:
            train_phase(
                Phase(
                    name=name,
                    batches=batches,
                    section=section,
                    seed=self.recipe.seed * 1000 + phase,
                    loss=loss or self.loss(section),
                    norms_stay=self.recipe.quantizer_only is not None,
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

    def optimizers(self, model: nn.Module, section: OptimizerSection) -> list[torch.optim.Optimizer]:
        """Return the optimizers of what the recipe trains: everything, or quantizers only."""
        return (make_optimizers if self.recipe.quantizer_only is None else quantizer_optimizers)(model, section)

    def loss(self, section: OptimizerSection) -> Loss:
        """Return the loss of the recipe: cross-entropy, or distance from the float network."""
        if self.data.teacher is None or self.recipe.quantizer_only is None:
            return partial(_cross_entropy, smoothing=section.label_smoothing)
        teacher = self.data.teacher.model.to(self.accelerator.device)
        return TeacherLoss(teacher, self.recipe.quantizer_only)

    def info(self, kind: Kind, stage: StageSection | None, **metrics: float) -> CheckpointInfo:
        """Return what a checkpoint of this run says about itself."""
        return CheckpointInfo(
            kind=kind,
            model_name=self.recipe.model.name,
            model_arguments=self.model_arguments,
            config=None if stage is None else self.recipe.quant_config(stage),
            preprocessing=self.preprocessing,
            data=self.recipe.data,
            class_names=self.data.class_names,
            metrics=metrics,
        )

    def save(self, name: str, info: CheckpointInfo, model: nn.Module) -> None:
        """Write the checkpoint of a finished phase, whose state is needed no longer."""
        if self.accelerator.is_main_process:
            save_checkpoint(self.path(name), info, model)
            remove_state(self.folder)
        self.accelerator.wait_for_everyone()

    def metrics(self, name: str, kind: Kind, stage: StageSection | None) -> dict[str, float]:
        """Return the metrics of a finished phase.

        Raises:
            CheckpointError: its checkpoint is damaged, or not of this run.
        """
        found = read_info(self.path(name))
        needed = ("accuracy", "accuracy_frozen_at_once") if kind == "frozen" else ("accuracy",)
        check_finished(self.path(name), found, self.info(kind, stage), needed)
        return found.metrics


class PhaseRecord:
    """What one phase leaves in the run's folder while it goes on; the main process writes."""

    def __init__(self, run: Run, name: str, learner: Learner, checkpoint: CheckpointInfo, position: Position) -> None:
        self.run, self.name, self.learner, self.checkpoint = run, name, learner, checkpoint
        self.curves: Curves | None = None
        self.last_step = 0
        if run.accelerator.is_main_process:
            drop_epochs(run.folder, name, position.epoch)
            self.curves = Curves(run.folder / "curves" / name, position.step)

    def __enter__(self) -> PhaseRecord:
        """Return itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """End the phase."""
        if self.curves is not None:
            self.curves.close()

    def on_step(self, metrics: StepMetrics) -> None:
        """Draw a step."""
        self.last_step = metrics.step
        if self.curves is None:
            return
        if metrics.step % CURVE_STEPS == 0:
            self.curves.step(metrics.step, {"loss": metrics.loss, "rate": metrics.rate})
        if metrics.step % INTERVAL_STEPS == 0:
            self.curves.intervals(metrics.step, self.learner.model)

    def on_epoch(self, metrics: EpochMetrics, position: Position) -> None:
        """Note an epoch, and keep the network if it is the best so far."""
        if self.curves is None:
            return
        self.curves.epoch(
            self.last_step,
            {"loss": metrics.loss, "train_accuracy": metrics.train_accuracy, "test_accuracy": metrics.test_accuracy},
        )
        append_epoch(self.run.folder, {"phase": self.name, **asdict(metrics)})
        self.run.progress.console.print(
            f"{self.name} epoch {metrics.epoch}: loss {metrics.loss:.4f}, train {metrics.train_accuracy:.2f} %, "
            f"test {metrics.test_accuracy:.2f} %, {metrics.seconds:.0f} s"
        )
        if metrics.test_accuracy > position.best:
            info = self.checkpoint.model_copy(update={"metrics": {"accuracy": metrics.test_accuracy}})
            save_checkpoint(self.run.folder / BEST_NAME / f"{self.name}.safetensors", info, self.learner.model)

    def save(self, position: Position) -> None:
        """Keep a position to go on from."""
        if self.curves is not None:
            self.curves.flush()  # before the state: a later start draws again only what comes behind it
            save_state(self.run.folder, self.name, position, self.learner)


def _cross_entropy(logits: Tensor, _x: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)
