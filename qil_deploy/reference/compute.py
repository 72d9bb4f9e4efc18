"""Execute one node: read its inputs and attributes, and call the kernel that computes it.

Every function takes a node and its input arrays (None for an optional input that is left out), and returns the node's
one output.
"""

from __future__ import annotations

import math

import numpy as np

from qil_deploy.onnx_io import Array, Node, data_type_name

from . import gates, kernels, products
from .arguments import (
    Inputs,
    grid_along_axis,
    grid_at,
    images_of,
    integer,
    integers,
    optional,
    real,
    required,
    scalar_grid_at,
    window_of,
)
from .matmul_nbits import check_blocks, check_zero_points, unpack_blocks
from .matmul_nbits import matmul_nbits as multiply_nbits


def qlinear_conv(node: Node, inputs: Inputs) -> Array:
    """Convolution of codes."""
    x, w = images_of(inputs), required(inputs, 3)
    return products.qlinear_conv(
        x,
        scalar_grid_at(inputs, 1, x.dtype),
        w,
        grid_at(inputs, 4, w.dtype),
        scalar_grid_at(inputs, 6, x.dtype),
        bias=optional(inputs, 8),
        window=window_of(node, w.shape[2:]),
        groups=integer(node, "group", 1),
    )


def low_bit_conv(node: Node, inputs: Inputs) -> Array:
    """Convolution of codes without zero points, clipped, as the function of that operator computes it."""
    for index in (2, 5):
        if required(inputs, index).any():
            raise ValueError(f"input {index} (a zero point) must be 0")
    x, low, high, x_high = required(inputs, 0), *(required(inputs, index) for index in (9, 10, 11))
    if any(limit.size != 1 for limit in (low, high, x_high)) or required(inputs, 8).ndim != 1:
        raise ValueError("inputs 9 to 11 (limits) must each be one code, and input 8 (the bias) a row")
    if x.max(initial=0) > x_high.item():
        raise ValueError(f"it reads a code of {x.max()}, above the {x_high.item()} that it promises")
    return clip(node, [qlinear_conv(node, inputs[:9]), low, high])


def conv_integer(node: Node, inputs: Inputs) -> Array:
    """Sums of a convolution of codes."""
    x, w, zero_points = images_of(inputs), required(inputs, 1), (optional(inputs, 2), optional(inputs, 3))
    x_zero, w_zero = (
        np.zeros((), array.dtype) if zero is None else zero for array, zero in zip((x, w), zero_points, strict=True)
    )
    if x_zero.size != 1:
        raise ValueError("input 2 (the zero point) must be a scalar")
    return products.conv_integer(
        x, x_zero.reshape(()), w, w_zero, window_of(node, w.shape[2:]), integer(node, "group", 1)
    )


def qgemm(node: Node, inputs: Inputs) -> Array:
    """Product of codes and weights, as codes or as floats."""
    a, b = required(inputs, 0), required(inputs, 3)
    return products.qgemm(
        a,
        scalar_grid_at(inputs, 1, a.dtype),
        b,
        grid_at(inputs, 4, b.dtype),
        None if optional(inputs, 7) is None else scalar_grid_at(inputs, 7, a.dtype),
        bias=optional(inputs, 6),
        transpose_b=bool(integer(node, "transB", 0)),
    )


def qlinear_add(_node: Node, inputs: Inputs) -> Array:
    """Sum of two tensors of codes."""
    a, b = required(inputs, 0), required(inputs, 3)
    grids = [scalar_grid_at(inputs, index, a.dtype) for index in (1, 4, 6)]
    return kernels.qlinear_add(a, grids[0], b, grids[1], grids[2])


def low_bit_rescale(node: Node, inputs: Inputs) -> Array:
    """Sum of two tensors of codes, clipped, as the function of that operator computes it."""
    low, high = required(inputs, 8), required(inputs, 9)
    if low.size != 1 or high.size != 1:
        raise ValueError("inputs 8 and 9 (limits) must each be one code")
    return clip(node, [qlinear_add(node, inputs[:8]), low, high])


def qlinear_mul(_node: Node, inputs: Inputs) -> Array:
    """Product of two tensors of codes."""
    a, b = required(inputs, 0), required(inputs, 3)
    grids = [scalar_grid_at(inputs, index, a.dtype) for index in (1, 4, 6)]
    return gates.qlinear_mul(a, grids[0], b, grids[1], grids[2])


def qlinear_sigmoid(_node: Node, inputs: Inputs) -> Array:
    """Sigmoid of codes."""
    x = required(inputs, 0)
    return gates.qlinear_table(x, scalar_grid_at(inputs, 1, x.dtype), scalar_grid_at(inputs, 3, x.dtype), "sigmoid")


def qlinear_leaky_relu(node: Node, inputs: Inputs) -> Array:
    """LeakyReLU of codes."""
    x, slope = required(inputs, 0), real(node, "alpha", 0.01)
    grids = [scalar_grid_at(inputs, index, x.dtype) for index in (1, 3)]
    return gates.qlinear_table(x, grids[0], grids[1], "leaky relu", slope)


def qlinear_average_pool(node: Node, inputs: Inputs) -> Array:
    """Means over windows."""
    x = images_of(inputs)
    return kernels.qlinear_average_pool(
        x,
        scalar_grid_at(inputs, 1, x.dtype),
        scalar_grid_at(inputs, 3, x.dtype),
        window_of(node, []),
        count_include_pad=bool(integer(node, "count_include_pad", 0)),
    )


def qlinear_global_average_pool(_node: Node, inputs: Inputs) -> Array:
    """Means over whole maps."""
    x = required(inputs, 0)
    grids = [scalar_grid_at(inputs, index, x.dtype) for index in (1, 3)]
    return kernels.qlinear_global_average_pool(x, grids[0], grids[1])


def clip(_node: Node, inputs: Inputs) -> Array:
    """Elements clipped at two limits."""
    x, low, high = required(inputs, 0), optional(inputs, 1), optional(inputs, 2)
    if low is not None:
        x = np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


def max_pool(node: Node, inputs: Inputs) -> Array:
    """Largest elements of windows."""
    return kernels.max_pool(images_of(inputs), window_of(node, []))


def quantize_linear(node: Node, inputs: Inputs) -> Array:
    """Codes of floats."""
    grid = grid_along_axis(node, inputs, np.dtype(np.uint8))
    return kernels.quantize_linear(required(inputs, 0), grid)


def dequantize_linear(node: Node, inputs: Inputs) -> Array:
    """Floats of codes."""
    x = required(inputs, 0)
    return kernels.dequantize_linear(x, grid_along_axis(node, inputs, x.dtype))


def flatten(node: Node, inputs: Inputs) -> Array:
    """A matrix of all elements."""
    x = required(inputs, 0)
    axis = integer(node, "axis", 1) % (x.ndim + 1)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def reshape(_node: Node, inputs: Inputs) -> Array:
    """Elements in another shape."""
    x, shape = required(inputs, 0), required(inputs, 1)
    return x.reshape([x.shape[axis] if size == 0 else int(size) for axis, size in enumerate(shape)])


def take_slice(_node: Node, inputs: Inputs) -> Array:
    """Elements at a step along some axes, forwards or backwards."""
    x, starts, stops = (required(inputs, index) for index in range(3))
    axes = range(len(starts)) if optional(inputs, 3) is None else required(inputs, 3)
    steps = np.ones(len(starts), np.int64) if optional(inputs, 4) is None else required(inputs, 4)
    whole = [slice(None)] * x.ndim
    for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
        if step == 0:
            raise ValueError("a step of 0 leads nowhere")
        whole[int(axis)] = slice(int(start), int(stop), int(step))
    return x[tuple(whole)]


def identity(_node: Node, inputs: Inputs) -> Array:
    """The input."""
    return required(inputs, 0)


def concat(node: Node, inputs: Inputs) -> Array:
    """Inputs side by side."""
    return np.concatenate([required(inputs, index) for index in range(len(inputs))], integer(node, "axis", 0))


def transpose(node: Node, inputs: Inputs) -> Array:
    """Elements with axes in another order."""
    x = required(inputs, 0)
    return x.transpose(integers(node, "perm", range(x.ndim)[::-1]))


def expand(_node: Node, inputs: Inputs) -> Array:
    """The input, repeated to a larger shape."""
    x, shape = required(inputs, 0), tuple(int(size) for size in required(inputs, 1))
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, shape)).copy()


def cast(node: Node, inputs: Inputs) -> Array:
    """The same numbers in another type."""
    return required(inputs, 0).astype(data_type_name(integer(node, "to", 0)))


def add(_node: Node, inputs: Inputs) -> Array:
    """Sum of int32; or of two float32, rounded once, as when normalised images become pixels."""
    a, b = required(inputs, 0), required(inputs, 1)
    return a + b if a.dtype == b.dtype == np.float32 else kernels.exact_int32(np.add, a, b)


def subtract(_node: Node, inputs: Inputs) -> Array:
    """Difference of int32."""
    return kernels.exact_int32(np.subtract, required(inputs, 0), required(inputs, 1))


def reduce_sum(node: Node, inputs: Inputs) -> Array:
    """Sums of int32 over axes."""
    x, axes = required(inputs, 0), required(inputs, 1)
    if x.dtype != np.int32:
        raise ValueError(f"ReduceSum of {x.dtype} is not supported, only of int32")
    keep = bool(integer(node, "keepdims", 1))
    return kernels.checked_int32(x.sum(axis=tuple(int(axis) for axis in axes), keepdims=keep, dtype=np.int64))


def resize(node: Node, inputs: Inputs) -> Array:
    """Pixels repeated, or interpolated between their middles."""
    x, factors = images_of(inputs), required(inputs, 2)
    found = {name: node.attributes.get(name) for name in ("mode", "coordinate_transformation_mode", "nearest_mode")}
    whole = factors.shape == (4,) and not np.any(factors[:2] != 1) and not np.any(factors != np.rint(factors))
    if whole and found == _REPEATED:
        rows, columns = (int(factor) for factor in factors[2:])
        return x.repeat(rows, axis=2).repeat(columns, axis=3)
    if whole and found == _BETWEEN and set(factors[2:].tolist()) <= _EXACT_FACTORS and x.dtype == np.uint8:
        return kernels.upsample_bilinear(x, int(factors[2]), int(factors[3]))
    raise ValueError(
        f"only Resize that repeats pixels is supported, or is linear and half_pixel by powers of two on uint8, not "
        f"{found} by {factors.tolist()}"
    )


_REPEATED = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
_BETWEEN = {"mode": "linear", "coordinate_transformation_mode": "half_pixel", "nearest_mode": None}
_EXACT_FACTORS = {1.0, 2.0, 4.0, 8.0, 16.0, 32.0}


def multiply(_node: Node, inputs: Inputs) -> Array:
    """Product, in the type of its factors."""
    return kernels.multiply(required(inputs, 0), required(inputs, 1))


def pad(node: Node, inputs: Inputs) -> Array:
    """The input with a constant around it, or with its own elements."""
    mode = node.attributes.get("mode", "constant")
    if mode not in ("constant", "edge", "reflect"):
        raise ValueError(f"attribute 'mode' of Pad is {mode!r}; constant, edge and reflect are supported")
    x, value, axes = required(inputs, 0), optional(inputs, 2), optional(inputs, 3)
    return kernels.pad(
        x,
        pads=[int(count) for count in required(inputs, 1)],
        value=np.zeros((), x.dtype) if value is None else value,
        axes=range(x.ndim) if axes is None else [int(axis) for axis in axes],
        mode=str(mode),
    )


def matmul_nbits(node: Node, inputs: Inputs) -> Array:
    """Product with packed weights."""
    outputs, columns, bits = integer(node, "N", 0), integer(node, "K", 0), integer(node, "bits", 4)
    block, level = integer(node, "block_size", 0), integer(node, "accuracy_level", 0)
    a, b, scales = (required(inputs, index) for index in range(3))
    if len(inputs) > 4:
        raise ValueError(f"{len(inputs)} inputs are given; only data, weights, scales and zero points are supported")
    check_blocks(b, (outputs, columns), bits, block)
    check_zero_points(inputs[3] if len(inputs) > 3 else None, outputs, columns // block, bits)
    scales = scales.reshape(outputs, -1)
    products = [
        multiply_nbits(a, unpack_blocks(b[some], (len(b[some]), columns), bits, block), scales[some], bits, level)
        for some in kernels.blocks(outputs, columns)
    ]
    return np.concatenate(products, axis=1)


def kept_in_float(node: Node, _inputs: Inputs) -> Array:
    """Refuse a float part, which has no integers."""
    raise ValueError(
        f"{node.name!r} is kept in float, and the integer reference computes integers only; "
        "`verify` compares such a file with ONNX Runtime"
    )


def not_executed(node: Node, _inputs: Inputs) -> Array:
    """Refuse: the reference has no integer kernel."""
    raise ValueError(f"no integer kernel exists for {node.op_type}")
