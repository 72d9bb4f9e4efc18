"""The learned parameters of all quantizers of a model."""

from __future__ import annotations

from torch import nn

from .contract import IntervalQuantizer
from .ranges import RangeQuantizer


def interval_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of all quantizers of a model (they get their own rate and no weight decay)."""
    kinds = (IntervalQuantizer, RangeQuantizer)
    return [
        parameter
        for module in model.modules()
        if isinstance(module, kinds)
        for parameter in module.parameters(recurse=False)
        if parameter.requires_grad
    ]
