"""From a prepared model to integers: fold, freeze, ratios that every machine rounds alike.

The names below are loaded on first use, so that a device can ask for `bounds` without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .bounds import (
        INT16_MAX,
        INT32_LIMIT,
        Function,
        Operand,
        added,
        largest_pair,
        largest_sums,
        multiplied,
        pooled,
        rounding_error_bound,
        table_values,
        tabulated,
    )
    from .fold import BIAS_LIMIT, gain_and_shift, integer_codes, largest_spread
    from .freeze_model import freeze, freeze_structure
    from .freezing_report import FreezingReport, compare_freezing, predictions
    from .frozen_gates import FrozenProduct, FrozenTable
    from .frozen_layer import FrozenLayer, drop_float_weights
    from .frozen_modules import (
        FrozenAdd,
        FrozenDequantize,
        FrozenFloat,
        FrozenGlobalAveragePool,
        FrozenInput,
        FrozenMeanLogits,
        FrozenModule,
        FrozenRescale,
        Grid,
    )
    from .frozen_moves import FrozenConstantPad
    from .ratios import LARGEST_DENOMINATOR, MAX_DENOMINATOR, shrink_factor

__all__ = [
    "BIAS_LIMIT",
    "INT16_MAX",
    "INT32_LIMIT",
    "LARGEST_DENOMINATOR",
    "MAX_DENOMINATOR",
    "FreezingReport",
    "FrozenAdd",
    "FrozenConstantPad",
    "FrozenDequantize",
    "FrozenFloat",
    "FrozenGlobalAveragePool",
    "FrozenInput",
    "FrozenLayer",
    "FrozenMeanLogits",
    "FrozenModule",
    "FrozenProduct",
    "FrozenRescale",
    "FrozenTable",
    "Function",
    "Grid",
    "Operand",
    "added",
    "compare_freezing",
    "drop_float_weights",
    "freeze",
    "freeze_structure",
    "gain_and_shift",
    "integer_codes",
    "largest_pair",
    "largest_spread",
    "largest_sums",
    "multiplied",
    "pooled",
    "predictions",
    "rounding_error_bound",
    "shrink_factor",
    "table_values",
    "tabulated",
]

_HOMES = {
    "BIAS_LIMIT": "fold",
    "FreezingReport": "freezing_report",
    "FrozenAdd": "frozen_modules",
    "FrozenConstantPad": "frozen_moves",
    "FrozenDequantize": "frozen_modules",
    "FrozenFloat": "frozen_modules",
    "FrozenGlobalAveragePool": "frozen_modules",
    "FrozenInput": "frozen_modules",
    "FrozenLayer": "frozen_layer",
    "FrozenMeanLogits": "frozen_modules",
    "FrozenModule": "frozen_modules",
    "FrozenProduct": "frozen_gates",
    "FrozenRescale": "frozen_modules",
    "FrozenTable": "frozen_gates",
    "Function": "bounds",
    "Grid": "frozen_modules",
    "INT16_MAX": "bounds",
    "INT32_LIMIT": "bounds",
    "LARGEST_DENOMINATOR": "ratios",
    "MAX_DENOMINATOR": "ratios",
    "Operand": "bounds",
    "added": "bounds",
    "compare_freezing": "freezing_report",
    "drop_float_weights": "frozen_layer",
    "freeze": "freeze_model",
    "freeze_structure": "freeze_model",
    "gain_and_shift": "fold",
    "integer_codes": "fold",
    "largest_pair": "bounds",
    "largest_spread": "fold",
    "largest_sums": "bounds",
    "multiplied": "bounds",
    "pooled": "bounds",
    "predictions": "freezing_report",
    "rounding_error_bound": "bounds",
    "shrink_factor": "ratios",
    "table_values": "bounds",
    "tabulated": "bounds",
}


def __getattr__(name: str) -> object:
    """Load a name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
