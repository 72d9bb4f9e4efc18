"""NumPy integer reference: execution of an exported ONNX file, with no tolerance and no runtime.

It executes the file itself, so that it shares no code with the exporter whose work it checks.
"""

from .arguments import integer, window_of
from .code_ranges import Range, largest_codes, range_of_result
from .evaluate import IntegerReference
from .executed_floats import float_kernels, float_nodes, parts_of_executed
from .kernels import blocks
from .matmul_nbits import (
    EXACT_LEVEL,
    LANE_CODE,
    SUM_LIMIT,
    check_blocks,
    check_zero_points,
    unpack_blocks,
    zero_point_byte,
)
from .operator_lookup import effect_of, find_operator, names_of, operator_of
from .operator_row import FLOAT32, INT8, Effect, Operator
from .operators import OPERATORS
from .windows import pad_images, window_views

__all__ = [
    "EXACT_LEVEL",
    "FLOAT32",
    "INT8",
    "LANE_CODE",
    "OPERATORS",
    "SUM_LIMIT",
    "Effect",
    "IntegerReference",
    "Operator",
    "Range",
    "blocks",
    "check_blocks",
    "check_zero_points",
    "effect_of",
    "find_operator",
    "float_kernels",
    "float_nodes",
    "integer",
    "largest_codes",
    "names_of",
    "operator_of",
    "pad_images",
    "parts_of_executed",
    "range_of_result",
    "unpack_blocks",
    "window_of",
    "window_views",
    "zero_point_byte",
]
