"""The QIL quantizers: pure functions with hand-written gradients, thin modules around them, first thresholds."""

from .functional import compile_quantizers, quantize_activation, quantize_range, quantize_weight, round_straight_through
from .modules import (
    ActivationQuantizer,
    InputQuantizer,
    IntervalQuantizer,
    RangeQuantizer,
    WeightQuantizer,
    interval_parameters,
)
from .thresholds import best_threshold

__all__ = [
    "ActivationQuantizer",
    "InputQuantizer",
    "IntervalQuantizer",
    "RangeQuantizer",
    "WeightQuantizer",
    "best_threshold",
    "compile_quantizers",
    "interval_parameters",
    "quantize_activation",
    "quantize_range",
    "quantize_weight",
    "round_straight_through",
]
