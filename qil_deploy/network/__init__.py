"""From a module of the user's to a prepared one: capture, sites of quantizers, calibration, other bits."""

from __future__ import annotations

from .batches import checked_batches
from .bit_widths import bits_read, change_bits, quantized_layers
from .calibration import calibrate, estimate_batchnorm
from .callers_state import evaluation_mode, nothing_left_behind
from .capture import add_module, input_of, module_of, shape_of, trace, users_of
from .finite import require_finite
from .float_island import FloatIsland
from .layers import (
    Add,
    AveragingConv2d,
    BatchNorm,
    Concat,
    GlobalAveragePool,
    QuantConv2d,
    QuantLayer,
    QuantLinear,
    Standalone,
    pair,
)
from .network_size import measure_network
from .preparation import prepare, prepare_structure
from .quantized_model import CONFIG, INPUT_GRID, FrozenModel, PreparedModel, QuantizedModel, keeps_float
from .sites import edge_layers, isolate
from .unwrap import float_network, prepared_model, unwrapped

__all__ = [
    "CONFIG",
    "INPUT_GRID",
    "Add",
    "AveragingConv2d",
    "BatchNorm",
    "Concat",
    "FloatIsland",
    "FrozenModel",
    "GlobalAveragePool",
    "PreparedModel",
    "QuantConv2d",
    "QuantLayer",
    "QuantLinear",
    "QuantizedModel",
    "Standalone",
    "add_module",
    "bits_read",
    "calibrate",
    "change_bits",
    "checked_batches",
    "edge_layers",
    "estimate_batchnorm",
    "evaluation_mode",
    "float_network",
    "input_of",
    "isolate",
    "keeps_float",
    "measure_network",
    "module_of",
    "nothing_left_behind",
    "pair",
    "prepare",
    "prepare_structure",
    "prepared_model",
    "quantized_layers",
    "require_finite",
    "shape_of",
    "trace",
    "unwrapped",
    "users_of",
]
