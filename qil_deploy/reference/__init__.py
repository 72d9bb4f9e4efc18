"""NumPy integer reference: what an exported ONNX file computes, with no tolerance and no runtime.

It executes the file itself, so that it shares no code with the exporter whose work it checks.
"""

from .arguments import integer, window_of
from .evaluate import IntegerReference
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
from .operators import find_operator
from .windows import pad_images, window_views

__all__ = [
    "EXACT_LEVEL",
    "LANE_CODE",
    "SUM_LIMIT",
    "IntegerReference",
    "blocks",
    "check_blocks",
    "check_zero_points",
    "find_operator",
    "integer",
    "pad_images",
    "unpack_blocks",
    "window_of",
    "window_views",
    "zero_point_byte",
]
