"""One phase of training: some epochs of one model with one schedule, on one process or many.

Batch `b` of epoch `e` is the same whenever and in however many processes it is made (`data`), dropout is seeded by its
position, and learning rates follow from it: a phase that goes on from a saved position ends with the same weights as
one that was never interrupted.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy.accuracy import top1_percent
from qil_deploy.errors import TrainingError
from qil_deploy.network import BatchNorm
from qil_deploy.terminal import Progress, TaskID

from .data import Batches, seeded
from .divergence import describe_divergence
from .models import in_memory_format, memory_format_for
from .optimizers import recipe_optimizers, weight_parameters
from .recipe import OptimizerSection
from .run_state import Learner, Position
from .sync_batchnorm import synchronize_batchnorm

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From logits [n, classes], input [n, C, H, W] and labels [n] to the loss, a scalar."""


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """What one epoch came to; accuracies in percent, time in seconds."""

    epoch: int
    loss: float
    train_accuracy: float
    test_accuracy: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """What one step came to: its loss and the factor on the learning rates."""

    step: int
    loss: float
    rate: float


def cross_entropy(logits: Tensor, _x: Tensor, labels: Tensor) -> Tensor:
    """Loss of a classifier against the labels."""
    return F.cross_entropy(logits, labels)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What is trained, and on what.

    Attributes:
        name: for messages.
        batches: of this process.
        section: schedule and optimizers.
        seed: of dropout.
        loss: what is minimised.
        norms_stay: whether BatchNorm keeps its statistics and normalizes by them.
    """

    name: str
    batches: Batches
    section: OptimizerSection
    seed: int
    loss: Loss = cross_entropy
    norms_stay: bool = False


@dataclass(frozen=True, kw_only=True)
class Reports:
    """Whom a phase tells how it goes. All are called in every process.

    Attributes:
        evaluate: returns the accuracy of the model on the test set, in percent.
        on_step: after every step.
        on_epoch: after every epoch; the position is that of the next.
        save: keeps a position.
        save_seconds: how often, at the least.
    """

    evaluate: Callable[[nn.Module], float]
    on_step: Callable[[StepMetrics], None]
    on_epoch: Callable[[EpochMetrics, Position], None]
    save: Callable[[Position], None]
    save_seconds: float = math.inf


def rate_factor(step: int, steps: int, section: OptimizerSection) -> float:
    """Factor on the learning rates: linear rise over the first `warmup` share of the steps, then the schedule.

    `cosine` falls to zero; `step` multiplies by `decay` at each milestone, a share of the steps.
    """
    rising = max(1, round(section.warmup * steps)) if section.warmup else 0
    if step < rising:
        return (step + 1) / rising
    if section.schedule == "step":
        return section.decay ** bisect_right(section.milestones, step / steps)
    return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def make_optimizers(model: nn.Module, section: OptimizerSection) -> list[torch.optim.Optimizer]:
    """Return the optimizers that a section asks for; errors as for `recipe_optimizers`."""
    return recipe_optimizers(
        model,
        learning_rate=section.learning_rate,
        interval_learning_rate=section.interval_learning_rate,
        weight_decay=section.weight_decay,
    )


def train_phase(
    phase: Phase,
    learner: Learner,
    reports: Reports,
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
            loss, right = _step(wrapped, optimizers, weights, batch, phase, accelerator)
            due = time.monotonic() - saved > reports.save_seconds
            loss, right, due = _over_processes(loss, right, due, accelerator)
            if not math.isfinite(loss):
                raise TrainingError(_divergence(phase, position, loss, model, images))
            if learner.average is not None:
                learner.average.update_parameters(model)
            position.batch += 1
            position.step += 1
            position.loss_sum += loss
            position.right += right
            reports.on_step(StepMetrics(step=step, loss=loss, rate=factor))
            _show(progress, task, phase.name, loss)
            if due:
                reports.save(position)
                saved = time.monotonic()
        _end_epoch(phase, model, reports, position, time.perf_counter() - began)
    progress.remove_task(task)
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    model.eval()


def _wrap(learner: Learner, accelerator: Accelerator) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """Return model and optimizers as accelerate runs them: in several processes, with mixed precision."""
    optimizers = [accelerator.prepare_optimizer(optimizer) for optimizer in learner.optimizers]
    return accelerator.prepare_model(learner.model), optimizers


def training_mode(model: nn.Module, *, norms_stay: bool) -> None:
    """Put a model into training mode, but BatchNorm into evaluation mode where its statistics stay."""
    model.train()
    if norms_stay:
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.eval()


def _seed_dropout(seed: int, step: int, accelerator: Accelerator) -> None:
    """Let whatever is random in the forward pass depend on the step and the process alone."""
    torch.manual_seed(seeded(seed, step, accelerator.process_index).initial_seed())


def _step(
    model: nn.Module,
    optimizers: Iterable[torch.optim.Optimizer],
    weights: Iterable[nn.Parameter],
    batch: tuple[Tensor, Tensor],
    phase: Phase,
    accelerator: Accelerator,
) -> tuple[float, int]:
    """One forward, backward and update; return the loss and how many images were classified rightly."""
    x, labels = batch
    logits = model(x)
    loss = phase.loss(logits, x, labels)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    accelerator.backward(loss)
    if phase.section.gradient_norm is not None:
        accelerator.clip_grad_norm_(weights, phase.section.gradient_norm)
    for optimizer in optimizers:
        optimizer.step()
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


def _end_epoch(phase: Phase, model: nn.Module, reports: Reports, position: Position, seconds: float) -> None:
    """Evaluate and report, and move the position to the next epoch."""
    batches = len(phase.batches)
    metrics = EpochMetrics(
        epoch=position.epoch,
        loss=position.loss_sum / batches,
        train_accuracy=top1_percent(position.right, batches * phase.batches.batch_size),
        test_accuracy=reports.evaluate(model),
        seconds=seconds,
    )
    best = max(position.best, metrics.test_accuracy)
    position.epoch, position.batch, position.loss_sum, position.right = position.epoch + 1, 0, 0.0, 0
    reports.on_epoch(metrics, position)
    position.best = best
    reports.save(position)


def _show(progress: Progress, task: TaskID, name: str, loss: float) -> None:
    progress.update(task, advance=1, description=f"{name} loss {loss:.3f}")


def _set_rates(optimizers: Iterable[torch.optim.Optimizer], rates: list[list[float]], factor: float) -> None:
    for optimizer, base in zip(optimizers, rates, strict=True):
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * factor
