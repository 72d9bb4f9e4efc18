"""One phase of training: some epochs of one model with one schedule, and its evaluation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy.datasets import ImageSet
from qil_deploy.errors import ConfigError
from qil_deploy.freezing_report import predictions
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import interval_parameters

from .data import TrainingBatches
from .models import memory_format_for
from .recipe import OptimizerSection


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """What one epoch came to; accuracies in percent, time in seconds."""

    epoch: int
    loss: float
    train_accuracy: float
    test_accuracy: float
    seconds: float


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """Factor on the learning rate: linear rise over the first `warmup` share of the steps, then cosine to zero."""
    rising = max(1, round(warmup * steps)) if warmup else 0
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def make_optimizers(model: nn.Module, section: OptimizerSection) -> list[torch.optim.Optimizer]:
    """SGD for weights (decay on tensors of rank 2 and more only), Adam for interval parameters if there are any.

    Adam bounds each step by its rate, and interval parameters are dimensionless, so one rate suits
    every layer, however large its gradient sum is.
    """
    intervals = interval_parameters(model)
    known = {id(parameter) for parameter in intervals}
    rest = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in known]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": section.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.SGD(groups, lr=section.learning_rate, momentum=0.9, nesterov=True)
    ]
    if intervals and section.interval_learning_rate > 0:
        optimizers.append(torch.optim.Adam(intervals, lr=section.interval_learning_rate))
    return optimizers


def accuracy(model: nn.Module, data: ImageSet, preprocessing: Preprocessing) -> float:
    """Top-1 accuracy of a model in evaluation mode, in percent."""
    return 100.0 * float((predictions(model, data.images, preprocessing) == data.labels).mean())


def train_epochs(
    model: nn.Module,
    batches: TrainingBatches,
    test: ImageSet,
    section: OptimizerSection,
    *,
    title: str,
    progress: Progress,
    on_epoch: Callable[[EpochMetrics], None],
) -> None:
    """Train `model` in place for `section.epochs` epochs and report each.

    Raises:
        ConfigError: the loss became infinite or not a number.
    """
    optimizers = make_optimizers(model, section)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    steps = section.epochs * len(batches)
    memory_format = memory_format_for(model)
    task = progress.add_task(title, total=steps)
    step = 0
    for epoch in range(section.epochs):
        began = time.perf_counter()
        model.train()
        losses: list[float] = []
        right = 0
        for x, labels in batches.epoch():
            _set_rates(optimizers, rates, rate_factor(step, steps, section.warmup))
            loss, logits = _train_step(model, optimizers, x.contiguous(memory_format=memory_format), labels)
            if not math.isfinite(loss):
                raise ConfigError(
                    f"{title}: the loss is {loss} at step {step} of epoch {epoch}; lower the learning rate."
                )
            losses.append(loss)
            right += int((logits.argmax(1) == labels).sum())
            step += 1
            progress.update(task, advance=1, description=f"{title} loss {loss:.3f}")
        on_epoch(
            EpochMetrics(
                epoch=epoch,
                loss=sum(losses) / len(losses),
                train_accuracy=100.0 * right / (len(batches) * batches.batch_size),
                test_accuracy=accuracy(model, test, batches.preprocessing),
                seconds=time.perf_counter() - began,
            )
        )
    model.eval()


def _train_step(
    model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], x: Tensor, labels: Tensor
) -> tuple[float, Tensor]:
    """One forward, backward and update; returns the loss and the detached logits."""
    logits = model(x)
    loss = F.cross_entropy(logits, labels)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return float(loss.detach()), logits.detach()


def _set_rates(optimizers: list[torch.optim.Optimizer], rates: list[list[float]], factor: float) -> None:
    for optimizer, base in zip(optimizers, rates, strict=True):
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * factor
