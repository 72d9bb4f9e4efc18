"""One phase of training: some epochs of one model with one schedule, on one process or many.

`fit` sets a phase up, from where an earlier start left it; `train_epochs` carries it out.

Batch `b` of epoch `e` is the same whenever and in however many processes it is made (`data`), dropout is seeded by its
position, and learning rates follow from it: a phase that resumes from a saved position ends with the same weights as
one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from qil_deploy.accuracy import top1_percent
from qil_deploy.checkpoint import CheckpointInfo
from qil_deploy.errors import TrainingError
from qil_deploy.network import BatchNorm, estimate_batchnorm
from qil_deploy.terminal import Progress, TaskID

from .data import Batches, seeded
from .distillation_teacher import DistillationLoss
from .divergence import describe_divergence
from .models import in_memory_format, memory_format_for
from .optimizers import make_optimizers, quantizer_optimizers, rate_factor, weight_parameters
from .oscillation import Oscillation, oscillation_of
from .phase_record import PhaseRecord
from .recipe_sections import OptimizerSection
from .run import Run
from .run_state import Extent, Learner, Position, load_state
from .sync_batchnorm import synchronize_batchnorm
from .teacher import TeacherLoss

Loss = Callable[[Tensor, Tensor, Tensor, Position], Tensor]
"""From logits [n, classes], input [n, C, H, W], labels [n] and the place of their batch to the loss, a scalar."""


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """Results of one epoch; accuracies in percent, time in seconds.

    `oscillating_weights` and `frozen_weights` are shares in [0, 1]; None where they are not counted (`oscillation`).
    """

    epoch: int
    loss: float
    train_accuracy: float
    test_accuracy: float
    seconds: float
    oscillating_weights: float | None = None
    frozen_weights: float | None = None


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """Results of one step: the loss, and the factor on the learning rates."""

    step: int
    loss: float
    rate: float


def cross_entropy(logits: Tensor, _x: Tensor, labels: Tensor, _position: Position, smoothing: float = 0.0) -> Tensor:
    """Loss of a classifier against the labels."""
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Data, schedule and loss of one phase.

    Attributes:
        name: for messages.
        batches: of this process.
        section: schedule and optimizers.
        seed: of dropout.
        loss: what is minimised.
        norms_stay: whether BatchNorm keeps its statistics and normalizes with them.
    """

    name: str
    batches: Batches
    section: OptimizerSection
    seed: int
    loss: Loss = cross_entropy
    norms_stay: bool = False


class Record(Protocol):
    """Evaluates a phase and records its progress (`PhaseRecord`). All methods are called in every process.

    Attributes:
        save_seconds: longest time between calls of `save`.
    """

    save_seconds: float

    def evaluate(self, model: nn.Module) -> float:
        """Return the accuracy of the model on the test set, in percent."""

    def on_step(self, metrics: StepMetrics) -> None:
        """Record a step."""

    def on_epoch(self, metrics: EpochMetrics, position: Position) -> None:
        """Record an epoch; the position is the start of the next one."""

    def save(self, position: Position) -> None:
        """Save a position from which to resume."""


def fit(run: Run, model: nn.Module, section: OptimizerSection, name: str, number: int, info: CheckpointInfo) -> float:
    """Train `model` in place, from the position of an earlier start; return its accuracy on the test set.

    Args:
        run: the run that the phase belongs to.
        model: as the phase begins.
        section: schedule and optimizers.
        name: of the phase.
        number: of the phase, from which its seed follows.
        info: what the checkpoint of its best epoch says about itself.

    Raises:
        TrainingError: the loss became infinite or not a number.
        CheckpointError: the state that an earlier start left is damaged, or not of this phase.
    """
    model.to(run.accelerator.device)
    averaging = None if section.average is None else get_ema_multi_avg_fn(section.average)
    average = None if averaging is None else AveragedModel(model, multi_avg_fn=averaging)
    optimizers = optimizers_of(run, model, section) if section.epochs > 0 else []
    oscillation = oscillation_of(model, section) if section.epochs > 0 else None
    learner = Learner(model=model, optimizers=optimizers, average=average, oscillation=oscillation)
    batches = run.batches(section.batch_size, number)
    phase = Phase(
        name=name,
        batches=batches,
        section=section,
        seed=run.seed(number),
        loss=loss_of(run, section, batches),
        norms_stay=run.recipe.quantizer_only is not None,
    )
    extent = Extent(epochs=section.epochs, batches=len(phase.batches), batch_size=section.batch_size)
    position = (load_state(run.folder, name, learner, extent) if run.resume else None) or Position()
    lesson = run.recipe.distillation_of(section)
    teacher = None if lesson is None else lesson.teacher
    with PhaseRecord(run, name, learner, info, position, teacher=teacher) as record:
        train_epochs(phase, learner, record, position=position, accelerator=run.accelerator, progress=run.progress)
    if average is not None:
        model.load_state_dict(average.module.state_dict())
    if section.batchnorm_batches:
        estimate_batchnorm(model, run.whole_batches(section.batchnorm_batches, section.batch_size, number))
    return run.accuracy(model)


def optimizers_of(run: Run, model: nn.Module, section: OptimizerSection) -> list[torch.optim.Optimizer]:
    """Return the optimizers for the parts that the recipe trains: everything, or quantizers only."""
    return (make_optimizers if run.recipe.quantizer_only is None else quantizer_optimizers)(model, section)


def loss_of(run: Run, section: OptimizerSection, batches: Batches | None = None) -> Loss:
    """Return the loss of a phase: cross-entropy, with or without a teacher, or distance from the float network.

    Args:
        run: the run.
        section: of the phase.
        batches: that it is for; None for any images.

    Raises:
        CheckpointError: the teacher's checkpoint cannot be read, or is not one for this run.
    """
    if run.data.teacher is not None and run.recipe.quantizer_only is not None:
        return TeacherLoss(run.data.teacher.model.to(run.accelerator.device), run.recipe.quantizer_only)
    lesson, teacher = run.recipe.distillation_of(section), run.distillation_teacher
    if lesson is None or teacher is None:
        return partial(cross_entropy, smoothing=section.label_smoothing)
    answers = teacher.logits_of_batch if batches is None else teacher.logits_for(batches)
    return DistillationLoss(teacher_logits=answers, section=lesson, smoothing=section.label_smoothing)


def train_epochs(
    phase: Phase,
    learner: Learner,
    record: Record,
    *,
    position: Position,
    accelerator: Accelerator,
    progress: Progress,
) -> None:
    """Train a model in place, from `position` to the end of the phase, and leave it in evaluation mode.

    Raises:
        TrainingError: the loss became infinite or not a number.
    """
    model = learner.model
    if accelerator.num_processes > 1:
        synchronize_batchnorm(model)
    wrapped, optimizers = _wrap(learner, accelerator)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in learner.optimizers]
    steps = phase.section.epochs * len(phase.batches)
    memory_format, weights = memory_format_for(model), weight_parameters(model)
    task = progress.add_task(phase.name, total=steps, completed=position.step)
    saved = time.monotonic()
    while position.epoch < phase.section.epochs:
        began = time.perf_counter()
        training_mode(model, norms_stay=phase.norms_stay)
        for x, labels in phase.batches.epoch(position.epoch, position.batch):
            step, factor = position.step, rate_factor(position.step, steps, phase.section)
            _set_rates(learner.optimizers, rates, factor)
            _seed_dropout(phase.seed, step, accelerator)
            images = in_memory_format(x.to(accelerator.device), memory_format)
            batch = (images, labels.to(accelerator.device))
            if learner.oscillation is not None:
                learner.oscillation.set_progress(step / steps)
            loss, right = _step(wrapped, optimizers, weights, batch, phase, accelerator, position, learner.oscillation)
            due = time.monotonic() - saved > record.save_seconds
            loss, right, due = _over_processes(loss, right, due, accelerator)
            if not math.isfinite(loss):
                raise TrainingError(_divergence(phase, position, loss, model, images))
            if learner.average is not None:
                learner.average.update_parameters(model)
            position.batch += 1
            position.step += 1
            position.loss_sum += loss
            position.right += right
            record.on_step(StepMetrics(step=step, loss=loss, rate=factor))
            _show(progress, task, phase.name, loss)
            if due and position.batch < len(phase.batches):  # at its end an epoch is saved in any case
                record.save(position)
                saved = time.monotonic()
        _end_epoch(phase, learner, record, position, time.perf_counter() - began)
    progress.remove_task(task)
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    model.eval()


def _wrap(learner: Learner, accelerator: Accelerator) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """Wrap model and optimizers for accelerate: several processes, mixed precision."""
    optimizers = [accelerator.prepare_optimizer(optimizer) for optimizer in learner.optimizers]
    return accelerator.prepare_model(learner.model), optimizers


def training_mode(model: nn.Module, *, norms_stay: bool) -> None:
    """Put a model into training mode, but BatchNorm into evaluation mode if its statistics are fixed."""
    model.train()
    if norms_stay:
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.eval()


def _seed_dropout(seed: int, step: int, accelerator: Accelerator) -> None:
    """Seed the forward pass, so that its randomness depends only on the step and the process."""
    torch.manual_seed(seeded(seed, step, accelerator.process_index).initial_seed())


def _step(
    model: nn.Module,
    optimizers: Iterable[torch.optim.Optimizer],
    weights: Iterable[nn.Parameter],
    batch: tuple[Tensor, Tensor],
    phase: Phase,
    accelerator: Accelerator,
    position: Position,
    oscillation: Oscillation | None,
) -> tuple[float, int]:
    """One forward, backward and update; return the loss and how many images were classified correctly."""
    x, labels = batch
    logits = model(x)
    loss = phase.loss(logits, x, labels, position)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    accelerator.backward(loss if oscillation is None else loss + oscillation.penalty())
    if phase.section.gradient_norm is not None:
        accelerator.clip_grad_norm_(weights, phase.section.gradient_norm)
    for optimizer in optimizers:
        optimizer.step()
    if oscillation is not None:
        oscillation.update()
    return float(loss.detach()), int((logits.detach().argmax(1) == labels).sum())


def _over_processes(loss: float, right: int, due: bool, accelerator: Accelerator) -> tuple[float, int, bool]:
    """Return mean loss, sum of `right`, and whether any process wants to save."""
    if accelerator.num_processes == 1:
        return loss, right, due
    values = torch.tensor([loss / accelerator.num_processes, right, due], dtype=torch.float64)
    total = accelerator.reduce(values.to(accelerator.device), "sum")
    return float(total[0]), int(total[1]), bool(total[2] > 0)


def _divergence(phase: Phase, position: Position, loss: float, model: nn.Module, x: Tensor) -> str:
    return (
        f"{phase.name}: the loss is {loss} at batch {position.batch} of epoch {position.epoch}: "
        f"{describe_divergence(model, x)}. Lower learning_rate or interval_learning_rate; "
        "the last saved state is kept."
    )


def _end_epoch(phase: Phase, learner: Learner, record: Record, position: Position, seconds: float) -> None:
    """Evaluate and report, and advance the position to the next epoch."""
    batches = len(phase.batches)
    count = None if learner.oscillation is None else learner.oscillation.count()
    metrics = EpochMetrics(
        epoch=position.epoch,
        loss=position.loss_sum / batches,
        train_accuracy=top1_percent(position.right, batches * phase.batches.batch_size),
        test_accuracy=record.evaluate(learner.model),
        seconds=seconds,
        oscillating_weights=None if count is None else count.oscillating,
        frozen_weights=None if count is None else count.frozen,
    )
    best = max(position.best, metrics.test_accuracy)
    position.epoch, position.batch, position.loss_sum, position.right = position.epoch + 1, 0, 0.0, 0
    record.on_epoch(metrics, position)
    position.best = best
    record.save(position)


def _show(progress: Progress, task: TaskID, name: str, loss: float) -> None:
    progress.update(task, advance=1, description=f"{name} loss {loss:.3f}")


def _set_rates(optimizers: Iterable[torch.optim.Optimizer], rates: list[list[float]], factor: float) -> None:
    for optimizer, base in zip(optimizers, rates, strict=True):
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * factor
