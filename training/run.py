"""One run of training: the data that its phases share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from qil_deploy.checkpoint import CheckpointInfo, read_info, save_checkpoint
from qil_deploy.network import PreparedModel, prepare
from qil_deploy.terminal import Progress

from .data import Batches, RunData, Share, load_run_data
from .distillation_teacher import DistillationTeacher
from .models import load_initial_weights, memory_format_for, model_builder
from .recipe import Recipe
from .recipe_sections import StageSection
from .run_folder import check_finished
from .run_state import remove_state

Kind = Literal["float", "quantized", "frozen"]
Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a start of a run; unlike the recipe, they may change from one start to the next.

    Attributes:
        mixed_precision: of convolutions and linear layers; quantizers and frozen phases stay float32.
        save_minutes: longest time between two saved states of a phase.
        workers: processes that decode the images of a folder.
    """

    mixed_precision: Precision = "no"
    save_minutes: float = 10.0
    workers: int = 4


class Run:
    """Common data of all phases of a run: recipe, data, output folder, processes, progress."""

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
        # The user who starts a run chose its recipe: the network it names may be built.
        self.builder = model_builder(recipe.model.name)
        self.model_arguments: dict[str, Any] = {
            "in_channels": self.preprocessing.channels,
            "num_classes": len(self.data.class_names),
        }
        if recipe.model.width is not None:
            self.model_arguments["width"] = recipe.model.width
        if self.data.teacher is not None:
            self.model_arguments = self.data.teacher.info.model_arguments
        section = recipe.distillation
        self.distillation_teacher = None if section is None else DistillationTeacher(self, section)

    def build(self) -> nn.Module:
        """Return the float network of the recipe, its weights seeded, in training mode."""
        torch.manual_seed(self.recipe.seed)
        model = self.builder(self.recipe.model.name, self.model_arguments)
        return model.to(memory_format=memory_format_for(model)).train()

    def load_initial_weights(self, model: nn.Module, *, tell: bool) -> None:
        """Load the initial weights that the recipe names, if any; `tell` prints the changes made to them."""
        section = self.recipe.model
        if section.weights is None:
            return

        def say(sentence: str) -> None:
            if tell:
                self.progress.console.print(sentence)

        fresh = load_initial_weights(model, section.weights, name=section.name, reset_head=section.reset_head, tell=say)
        if fresh:
            say(f"Started anew, for {section.weights} has another head: {', '.join(fresh)}.")

    def prepare(self, model: nn.Module, stage: StageSection, example: Tensor) -> PreparedModel:
        """Return a float network with the quantizers of a stage in it."""
        return prepare(model, self.recipe.quant_config(stage), example, input_grid=self.preprocessing)

    def batches(self, batch_size: int, phase: int, share: Share | None = None) -> Batches:
        """Return the training batches of one phase, which has a seed of its own."""
        return self.data.batches(batch_size, self.seed(phase), share or self.share)

    def whole_batches(self, count: int, batch_size: int, phase: int) -> list[Tensor]:
        """Return the first inputs of a phase, the same in every process, from which to set intervals and statistics."""
        batches = self.batches(batch_size, phase, Share())
        count = min(count, len(batches))
        return [x.to(self.accelerator.device) for _, (x, _) in zip(range(count), batches.epoch(0), strict=False)]

    def seed(self, phase: int) -> int:
        """Return the seed of a phase, by its number."""
        return self.recipe.seed * 1000 + phase

    def accuracy(self, model: nn.Module) -> float:
        """Top-1 accuracy on the test set, in percent."""
        return self.data.accuracy(model, self.accelerator)

    def path(self, name: str) -> Path:
        """Return the checkpoint path of a phase."""
        return self.folder / f"{name}.safetensors"

    def done(self, name: str) -> bool:
        """Whether a phase can be skipped because an earlier start has finished it."""
        return self.resume and self.path(name).is_file()

    def info(self, kind: Kind, stage: StageSection | None, **metrics: float) -> CheckpointInfo:
        """Return the metadata of a checkpoint of this run."""
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
        """Write the checkpoint of a finished phase, and remove its state, which is no longer needed."""
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
