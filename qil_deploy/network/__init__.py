"""From the user's module to a prepared model: capture, sites of quantizers, calibration, other bits."""

from __future__ import annotations

from .batches import INPUT_GRID, checked_batches
from .behind_moves import norm_behind
from .bit_widths import bits_read, change_bits, quantized_layers
from .calibration import calibrate, estimate_batchnorm
from .callers_state import evaluation_mode, nothing_left_behind
from .capture import capture_network
from .finite import require_finite
from .float_island import FloatIsland
from .graph import add_module, input_of, kind_of, module_of, row_of, shape_of, users_of
from .layers import (
    Add,
    AveragingConv2d,
    BatchNorm,
    ChannelAffine,
    GlobalAveragePool,
    Norm,
    Product,
    QuantConv2d,
    QuantLayer,
    QuantLinear,
    Standalone,
    pad_image,
    pads_of,
    pair,
    weight_to_quantize,
)
from .moves import BilinearUpsample, Concat, ConstantPad, OnGrid, Permute, Reshape, Slice
from .network_size import measure_network
from .onnx_forms import OnnxForm
from .operator_row import LAYER_KINDS, MOVING_KINDS, Operator
from .operators import operator_of
from .outputs import logits_of, named_tensors, outputs_of, require_maps_of_images, returned_of, tensors_of
from .preparation import prepare, prepare_structure
from .quantized_model import CONFIG, FrozenModel, PreparedModel, QuantizedModel, keeps_float
from .sites import edge_layers, isolate
from .unwrap import float_network, prepared_model, unwrapped

__all__ = [
    "CONFIG",
    "INPUT_GRID",
    "LAYER_KINDS",
    "MOVING_KINDS",
    "Add",
    "AveragingConv2d",
    "BatchNorm",
    "BilinearUpsample",
    "ChannelAffine",
    "Concat",
    "ConstantPad",
    "FloatIsland",
    "FrozenModel",
    "GlobalAveragePool",
    "Norm",
    "OnGrid",
    "OnnxForm",
    "Operator",
    "Permute",
    "PreparedModel",
    "Product",
    "QuantConv2d",
    "QuantLayer",
    "QuantLinear",
    "QuantizedModel",
    "Reshape",
    "Slice",
    "Standalone",
    "add_module",
    "bits_read",
    "calibrate",
    "capture_network",
    "change_bits",
    "checked_batches",
    "edge_layers",
    "estimate_batchnorm",
    "evaluation_mode",
    "float_network",
    "input_of",
    "isolate",
    "keeps_float",
    "kind_of",
    "logits_of",
    "measure_network",
    "module_of",
    "named_tensors",
    "norm_behind",
    "nothing_left_behind",
    "operator_of",
    "outputs_of",
    "pad_image",
    "pads_of",
    "pair",
    "prepare",
    "prepare_structure",
    "prepared_model",
    "quantized_layers",
    "require_finite",
    "require_maps_of_images",
    "returned_of",
    "row_of",
    "shape_of",
    "tensors_of",
    "unwrapped",
    "users_of",
    "weight_to_quantize",
]
