"""Parameter groups, the optimizers that recipes use, and their schedule.

    weights of convolutions and linear layers         learning_rate, with weight decay
    biases, BatchNorm                                 learning_rate
    intervals, steps of 8-bit ranges, exponents       interval_learning_rate
    output scales and shifts                          output_scale_learning_rate; None: that of intervals, or its
                                                      default where that is 0

Parameters of quantizers, output scales and shifts are dimensionless (decision 0009), so one rate suits every layer, and
Adam bounds each step by it, however large the sum of gradients is (decision 0011). SGD is there for the paper's own
recipe. In a frozen model the intervals and steps of activations are constants; its weights and their intervals keep
learning.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import Any

import torch
from torch import nn

from qil_deploy.errors import ConfigError
from qil_deploy.network import AveragingConv2d, QuantConv2d, QuantLinear
from qil_deploy.quantizers import interval_parameters

from .recipe_sections import (
    INTERVAL_LEARNING_RATE,
    STAGE_LEARNING_RATE,
    STAGE_WEIGHT_DECAY,
    OptimizerSection,
    output_scale_rate,
)
from .recipe_values import IntervalOptimizer

MOMENTUM = 0.9


def parameter_groups(
    model: nn.Module,
    *,
    learning_rate: float = STAGE_LEARNING_RATE,
    interval_learning_rate: float = INTERVAL_LEARNING_RATE,
    output_scale_learning_rate: float | None = None,
    weight_decay: float = STAGE_WEIGHT_DECAY,
) -> list[dict[str, Any]]:
    """Return the trained parameters as groups for one optimizer; the defaults are those of recipes' stages.

    `torch.optim.AdamW(parameter_groups(model, learning_rate=1e-3))`, for one. Intervals may diverge under SGD; if
    weights use it, take `recipe_optimizers`.

    Args:
        model: float, prepared or frozen.
        learning_rate: of weights, biases and BatchNorm.
        interval_learning_rate: of quantizers; 0 leaves them out.
        output_scale_learning_rate: of output scales and shifts; None: that of quantizers, or its default where that is
            0.
        weight_decay: of tensors of rank 2 and more.

    Raises:
        ConfigError: nothing would be trained.
    """
    weights, scales = weight_parameters(model), output_parameters(model)
    intervals = interval_parameters(model) if interval_learning_rate > 0 else []
    of_scales = output_scale_rate(interval_learning_rate, output_scale_learning_rate)
    groups = [
        ([p for p in weights if p.ndim >= 2], learning_rate, weight_decay),
        ([p for p in weights if p.ndim < 2], learning_rate, 0.0),
        *((tensors, rate, 0.0) for tensors, rate in _by_rate(intervals, interval_learning_rate, scales, of_scales)),
    ]
    found = [{"params": tensors, "lr": rate, "weight_decay": decay} for tensors, rate, decay in groups if tensors]
    if not found:
        raise ConfigError(
            "there is nothing to train: no parameter of the model requires a gradient (quantizers count where "
            "interval_learning_rate is above 0); call requires_grad_(True) on what should learn."
        )
    return found


def _by_rate(
    intervals: list[nn.Parameter], of_intervals: float, scales: list[nn.Parameter], of_scales: float
) -> list[tuple[list[nn.Parameter], float]]:
    """Group intervals and output scales by rate: in one group if the rates are equal, or one kind is missing."""
    if of_scales == of_intervals or not intervals:
        return [(intervals + scales, of_scales)]
    return [(intervals, of_intervals), (scales, of_scales)]


def recipe_optimizers(
    model: nn.Module,
    *,
    learning_rate: float = STAGE_LEARNING_RATE,
    interval_learning_rate: float = INTERVAL_LEARNING_RATE,
    output_scale_learning_rate: float | None = None,
    weight_decay: float = STAGE_WEIGHT_DECAY,
    interval_optimizer: IntervalOptimizer = "adam",
) -> list[torch.optim.Optimizer]:
    """Return the optimizers of recipes: SGD with Nesterov momentum for weights, Adam for quantizers and output scales.

    Arguments and errors as for `parameter_groups`. One of the two is missing if it would have nothing to do. With
    `interval_optimizer="sgd"` quantizers and scales, too, learn by SGD with Nesterov momentum, at their own rate.
    """
    groups = parameter_groups(
        model,
        learning_rate=learning_rate,
        interval_learning_rate=interval_learning_rate,
        output_scale_learning_rate=output_scale_learning_rate,
        weight_decay=weight_decay,
    )
    weights = {id(parameter) for parameter in weight_parameters(model)}
    of_intervals = [group for group in groups if id(group["params"][0]) not in weights]
    of_weights = [group for group in groups if id(group["params"][0]) in weights]
    optimizers: list[torch.optim.Optimizer] = []
    if of_weights:
        optimizers.append(_sgd(of_weights))
    if of_intervals:
        optimizers.append(_of_intervals(of_intervals, interval_optimizer))
    return optimizers


def _sgd(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True)


def _of_intervals(groups: list[dict[str, Any]], kind: IntervalOptimizer) -> torch.optim.Optimizer:
    # Fused, all scalars are one call; one by one they take ten operations each, some milliseconds of every step.
    return _sgd(groups) if kind == "sgd" else torch.optim.Adam(groups, fused=True)


def weight_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the trained weights, biases and parameters of BatchNorm; `gradient_norm` bounds their gradient."""
    known = {id(parameter) for parameter in interval_parameters(model) + output_parameters(model)}
    return [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in known]


def output_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the trained output scales and shifts of quantized layers."""
    return [
        parameter
        for module in model.modules()
        if isinstance(module, QuantConv2d | QuantLinear) and not isinstance(module, AveragingConv2d)
        for parameter in (module.log_output_scale, module.output_shift)
        if parameter is not None and parameter.requires_grad
    ]


def make_optimizers(model: nn.Module, section: OptimizerSection) -> list[torch.optim.Optimizer]:
    """Return the optimizers for a section; errors as for `recipe_optimizers`."""
    return recipe_optimizers(
        model,
        learning_rate=section.learning_rate,
        interval_learning_rate=section.interval_learning_rate,
        output_scale_learning_rate=section.output_scale_learning_rate,
        weight_decay=section.weight_decay,
        interval_optimizer=section.interval_optimizer,
    )


def quantizer_optimizers(model: nn.Module, section: OptimizerSection) -> list[torch.optim.Optimizer]:
    """Make quantizers, output scales and shifts the only trained parameters; return their optimizers.

    At an `interval_learning_rate` of 0 quantizers stay, too.

    Raises:
        ConfigError: there are none.
    """
    intervals = interval_parameters(model) if section.interval_learning_rate > 0 else []
    scales = output_parameters(model)
    learned = intervals + scales
    if not learned:
        raise ConfigError(
            "there is nothing to train: the model has no output scale, and no quantizer whose interval could be "
            "learned (at an interval_learning_rate above 0)."
        )
    model.requires_grad_(False)
    for parameter in learned:
        parameter.requires_grad_(True)
    rate = section.interval_learning_rate
    groups = _by_rate(intervals, rate, scales, output_scale_rate(rate, section.output_scale_learning_rate))
    return [_of_intervals([{"params": p, "lr": lr} for p, lr in groups if p], section.interval_optimizer)]


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
