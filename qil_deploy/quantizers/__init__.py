"""Learned quantizers, one file per method: functions with hand-written gradients, modules, first thresholds.

`QuantConfig.method` chooses; `contract` says what a method provides.
"""

from .contract import LARGEST_LOG, ActivationQuantizer, IntervalQuantizer, Method, WeightQuantizer
from .kernels import compile_quantizers, round_straight_through
from .methods import METHODS, activation_quantizer, weight_quantizer
from .parameters import interval_parameters
from .qil import QilActivationQuantizer, QilWeightQuantizer
from .ranges import InputQuantizer, RangeQuantizer
from .thresholds import best_threshold

__all__ = [
    "LARGEST_LOG",
    "METHODS",
    "ActivationQuantizer",
    "InputQuantizer",
    "IntervalQuantizer",
    "Method",
    "QilActivationQuantizer",
    "QilWeightQuantizer",
    "RangeQuantizer",
    "WeightQuantizer",
    "activation_quantizer",
    "best_threshold",
    "compile_quantizers",
    "interval_parameters",
    "round_straight_through",
    "weight_quantizer",
]
