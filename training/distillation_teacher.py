"""The teacher of a recipe with `[distillation]`, and its logits for training images.

The teacher never changes. If images are shown unchanged, or at most mirrored, there are one or two answers per image:
then its logits are computed once for the whole run, in the order of the data set, and looked up for each batch. Shifted
or cut images, folders, more logits than `LARGEST_TABLE` bytes hold, and runs of so few epochs
that a table does not pay are answered batch by batch. Either way logits follow from the images alone: a run that is
resumed, or has more processes, learns from the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qil_deploy.checkpoint import CheckpointInfo, load_model
from qil_deploy.errors import CheckpointError
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.untrusted_text import excerpt

from .data import ArrayBatches, Batches, to_input
from .distillation import distillation_loss
from .models import in_memory_format, memory_format_for, model_builder
from .recipe_sections import OWN_FLOAT, DistillationSection
from .run_state import Position

if TYPE_CHECKING:
    from .run import Run

LARGEST_TABLE = 512 << 20
_IMAGES = 256  # that the teacher reads at once for the table

LogitsOf = Callable[[Tensor, Position], Tensor]
"""From the input of a batch, [n, C, H, W], and where it stands, to the teacher's logits [n, classes]."""


@dataclass(frozen=True, kw_only=True)
class DistillationLoss:
    """Loss of a phase that learns from labels and a teacher (`distillation_loss`)."""

    teacher_logits: LogitsOf
    section: DistillationSection
    smoothing: float

    def __call__(self, logits: Tensor, x: Tensor, labels: Tensor, position: Position) -> Tensor:
        """Return the loss of one batch, a scalar."""
        return distillation_loss(
            logits,
            self.teacher_logits(x, position),
            labels,
            weight=self.section.weight,
            temperature=self.section.temperature,
            smoothing=self.smoothing,
        )


@dataclass(frozen=True, kw_only=True)
class _Network:
    """A network in evaluation mode, and its map of the run's input: `x_c * factor_c + offset_c`."""

    model: nn.Module
    factor: Tensor
    offset: Tensor


class DistillationTeacher:
    """The teacher of one run, read when it is first needed.

    Args:
        run: the run.
        section: which teacher.
    """

    def __init__(self, run: Run, section: DistillationSection) -> None:
        self.run = run
        self.section = section
        self._table: Tensor | None = None

    def logits_for(self, batches: Batches) -> LogitsOf:
        """Return the source of logits for the batches of one phase: the table if one is kept, else the network.

        Raises:
            CheckpointError: the teacher's checkpoint cannot be read, or is not one for this run.
        """
        if not isinstance(batches, ArrayBatches) or not self._keeps_table(batches):
            return self.logits_of_batch
        if self._table is None:
            self._table = self._make_table(batches)
        table = self._table

        def looked_up(_x: Tensor, position: Position) -> Tensor:
            chosen, mirrored = batches.drawn(position.epoch, position.batch)
            return table[mirrored.long().to(table.device), chosen.to(table.device)]

        return looked_up

    def logits_of_batch(self, x: Tensor, _position: Position) -> Tensor:
        """Return the logits for input of the run, [n, classes]; errors as for `logits_for`."""
        return self._answer(self._network, x)

    @torch.no_grad()
    def _answer(self, network: _Network, x: Tensor) -> Tensor:
        images = x * network.factor + network.offset  # a copy: the first layer may write in place
        with self.run.accelerator.autocast():
            logits: Tensor = network.model(in_memory_format(images, memory_format_for(network.model)))
        return logits

    @property
    def _network(self) -> _Network:
        """The teacher; before the float network is trained, a similar network, for the rehearsal."""
        if self.section.teacher == OWN_FLOAT and not self.run.path("float").is_file():
            return self._made_of(self.run.build(), self.run.preprocessing)
        return self._read

    @cached_property
    def _read(self) -> _Network:
        own = self.section.teacher == OWN_FLOAT
        path = self.run.path("float") if own else Path(self.section.teacher)
        build = self.run.builder if self.section.model is None else model_builder(self.section.model)
        info, model = load_model(path, build)
        if not own:
            _check_teacher(path, info, self.run.preprocessing, self.run.data.class_names)
        if self.run.accelerator.is_main_process:
            accuracy = f", {info.metrics['accuracy']:.2f} % on its test set" if "accuracy" in info.metrics else ""
            self.run.progress.console.print(f"Teacher: {path}, a {info.kind} {info.model_name}{accuracy}.")
        return self._made_of(model, info.preprocessing)

    def _made_of(self, model: nn.Module, preprocessing: Preprocessing) -> _Network:
        device, run = self.run.accelerator.device, self.run.preprocessing
        factor = preprocessing.factor / run.factor
        offset = (run.shift - preprocessing.shift) * preprocessing.factor
        factors, offsets = (
            torch.tensor(values, dtype=torch.float32, device=device)[:, None, None] for values in (factor, offset)
        )
        model.to(device=device, memory_format=memory_format_for(model))  # type: ignore[call-overload]  # missing in stubs
        return _Network(model=model.eval().requires_grad_(False), factor=factors, offset=offsets)

    def _keeps_table(self, batches: ArrayBatches) -> bool:
        """Whether a table fits in memory, and computing it takes no more inferences than the epochs would."""
        recipe, variants = self.run.recipe, 1 + batches.flip
        size = 4 * variants * len(batches.images) * len(self.run.data.class_names)
        sections = [recipe.float_training, *recipe.stages, *(stage.frozen_section() for stage in recipe.stages)]
        epochs = sum(section.epochs for section in sections if recipe.distillation_of(section) is not None)
        return not batches.shift and size <= LARGEST_TABLE and epochs >= variants

    def _make_table(self, batches: ArrayBatches) -> Tensor:
        """Return the logits of all training images, float32 [1 or 2, N, classes]: as they are, and mirrored.

        Every process computes its part, and all get the whole.
        """
        run, images = self.run, batches.images
        network = self._network
        device, share = run.accelerator.device, run.share
        table = torch.zeros(1 + batches.flip, len(images), len(run.data.class_names), device=device)
        starts = range(share.rank * _IMAGES, len(images), share.of * _IMAGES)
        task = run.progress.add_task("logits of the teacher", total=len(starts))
        for start in starts:
            rows = slice(start, start + _IMAGES)
            for variant, seen in zip(table, (images[rows], images[rows].flip(3)), strict=False):
                variant[rows] = self._answer(network, to_input(seen.to(device), batches.preprocessing))
            run.progress.advance(task)
        run.progress.remove_task(task)
        whole: Tensor = run.accelerator.reduce(table, "sum")  # exact: all other terms are zero
        return whole


def _check_teacher(
    path: Path, info: CheckpointInfo, preprocessing: Preprocessing, class_names: tuple[str, ...]
) -> None:
    """Check that a teacher reads the images of a run and distinguishes its classes.

    Raises:
        CheckpointError: it does not.
    """
    orders = [each.channel_order or "RGB" for each in (info.preprocessing, preprocessing)]
    checks = (
        ("images of shape", list(info.preprocessing.shape), list(preprocessing.shape)),
        ("channels in the order", orders[0], orders[1]),
        ("the classes", ", ".join(info.class_names), ", ".join(class_names)),
    )
    for what, found, wanted in checks:
        if found != wanted:
            raise CheckpointError(
                f"distillation.teacher {path} has {what} {excerpt(found)}, but the recipe {excerpt(wanted)}; name a "
                f"checkpoint for the same ones, or {OWN_FLOAT!r} for the run's own float network."
            )
