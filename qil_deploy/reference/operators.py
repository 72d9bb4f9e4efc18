"""From ONNX nodes to kernels: which inputs and attributes an operator has and which kernel computes it.

Every function here takes a node and its input arrays (None for an optional input that is left out) and
returns the node's one output.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qil_deploy.onnx_io import PART_DOMAIN, PART_OPERATOR, Array, Node, data_type_name
from qil_deploy.untrusted_text import excerpt

from . import costs, kernels
from .arguments import (
    Inputs,
    grid_along_axis,
    grid_at,
    images_of,
    integer,
    integers,
    optional,
    required,
    scalar_grid_at,
    window_of,
)
from .budget import Cost
from .matmul_nbits import check_blocks, check_zero_points, matmul_nbits, unpack_blocks

MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Operator:
    """How one ONNX operator is computed: its function, what that takes, and the attributes that may take any value."""

    compute: Callable[[Node, Inputs], Array]
    cost: Callable[[Node, Inputs], Cost]
    attributes: frozenset[str] = frozenset()


def find_operator(node: Node) -> Operator:
    """Return the operator of a node.

    Raises:
        ValueError: the operator is unknown, or an attribute asks for what no kernel here computes.
    """
    operator = _OPERATORS.get((node.domain, node.op_type))
    if operator is None:
        surrounded = ""
        if node.op_type in ("Conv", "Gemm", "AveragePool", "GlobalAveragePool"):
            surrounded = "; in a QDQ file it has to stand between DequantizeLinear and QuantizeLinear"
        raise ValueError(f"no integer kernel exists for {node.domain or 'ai.onnx'} {node.op_type}{surrounded}")
    for name, value in node.attributes.items():
        if name in operator.attributes:
            continue
        if name not in _FIXED_ATTRIBUTES:
            raise ValueError(f"attribute {name!r} of {node.op_type} is not supported")
        if value != _FIXED_ATTRIBUTES[name]:
            raise ValueError(
                f"attribute {name!r} is {excerpt(repr(value))}; only {_FIXED_ATTRIBUTES[name]!r} is supported"
            )
    if len(node.outputs) != 1:
        raise ValueError(f"{len(node.outputs)} outputs are asked for; only the first is supported")
    return operator


# Attributes that are understood, with the one value that the kernels compute.
_FIXED_ATTRIBUTES: dict[str, int | float | str] = {
    "allowzero": 0,
    "alpha": 1.0,
    "auto_pad": "NOTSET",
    "beta": 1.0,
    "block_size": 0,
    "channels_last": 0,
    "mode": "constant",
    "precision": 0,
    "saturate": 1,
    "storage_order": 0,
    "transA": 0,
}


def _qlinear_conv(node: Node, inputs: Inputs) -> Array:
    x, w = images_of(inputs), required(inputs, 3)
    return kernels.qlinear_conv(
        x,
        scalar_grid_at(inputs, 1, x.dtype),
        w,
        grid_at(inputs, 4, w.dtype),
        scalar_grid_at(inputs, 6, x.dtype),
        bias=optional(inputs, 8),
        window=window_of(node, w.shape[2:]),
        groups=integer(node, "group", 1),
    )


def _qgemm(node: Node, inputs: Inputs) -> Array:
    a, b = required(inputs, 0), required(inputs, 3)
    return kernels.qgemm(
        a,
        scalar_grid_at(inputs, 1, a.dtype),
        b,
        grid_at(inputs, 4, b.dtype),
        None if optional(inputs, 7) is None else scalar_grid_at(inputs, 7, a.dtype),
        bias=optional(inputs, 6),
        transpose_b=bool(integer(node, "transB", 0)),
    )


def _qlinear_add(_node: Node, inputs: Inputs) -> Array:
    a, b = required(inputs, 0), required(inputs, 3)
    grids = [scalar_grid_at(inputs, index, a.dtype) for index in (1, 4, 6)]
    return kernels.qlinear_add(a, grids[0], b, grids[1], grids[2])


def _qlinear_average_pool(node: Node, inputs: Inputs) -> Array:
    x = images_of(inputs)
    return kernels.qlinear_average_pool(
        x,
        scalar_grid_at(inputs, 1, x.dtype),
        scalar_grid_at(inputs, 3, x.dtype),
        window_of(node, []),
        count_include_pad=bool(integer(node, "count_include_pad", 0)),
    )


def _qlinear_global_average_pool(_node: Node, inputs: Inputs) -> Array:
    x = required(inputs, 0)
    grids = [scalar_grid_at(inputs, index, x.dtype) for index in (1, 3)]
    return kernels.qlinear_global_average_pool(x, grids[0], grids[1])


def _clip(_node: Node, inputs: Inputs) -> Array:
    x, low, high = required(inputs, 0), optional(inputs, 1), optional(inputs, 2)
    if low is not None:
        x = np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


def _max_pool(node: Node, inputs: Inputs) -> Array:
    return kernels.max_pool(images_of(inputs), window_of(node, []))


def _quantize_linear(node: Node, inputs: Inputs) -> Array:
    grid = grid_along_axis(node, inputs, np.dtype(np.uint8))
    return kernels.quantize_linear(required(inputs, 0), grid)


def _dequantize_linear(node: Node, inputs: Inputs) -> Array:
    x = required(inputs, 0)
    return kernels.dequantize_linear(x, grid_along_axis(node, inputs, x.dtype))


def _flatten(node: Node, inputs: Inputs) -> Array:
    x = required(inputs, 0)
    axis = integer(node, "axis", 1) % (x.ndim + 1)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _reshape(_node: Node, inputs: Inputs) -> Array:
    x, shape = required(inputs, 0), required(inputs, 1)
    return x.reshape([x.shape[axis] if size == 0 else int(size) for axis, size in enumerate(shape)])


def _identity(_node: Node, inputs: Inputs) -> Array:
    return required(inputs, 0)


def _concat(node: Node, inputs: Inputs) -> Array:
    return np.concatenate([required(inputs, index) for index in range(len(inputs))], integer(node, "axis", 0))


def _transpose(node: Node, inputs: Inputs) -> Array:
    x = required(inputs, 0)
    return x.transpose(integers(node, "perm", range(x.ndim)[::-1]))


def _expand(_node: Node, inputs: Inputs) -> Array:
    x, shape = required(inputs, 0), tuple(int(size) for size in required(inputs, 1))
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, shape)).copy()


def _cast(node: Node, inputs: Inputs) -> Array:
    return required(inputs, 0).astype(data_type_name(integer(node, "to", 0)))


def _add(_node: Node, inputs: Inputs) -> Array:
    return kernels.exact_int32(np.add, required(inputs, 0), required(inputs, 1))


def _subtract(_node: Node, inputs: Inputs) -> Array:
    return kernels.exact_int32(np.subtract, required(inputs, 0), required(inputs, 1))


def _reduce_sum(node: Node, inputs: Inputs) -> Array:
    x, axes = required(inputs, 0), required(inputs, 1)
    if x.dtype != np.int32:
        raise ValueError(f"ReduceSum of {x.dtype} is not supported, only of int32")
    keep = bool(integer(node, "keepdims", 1))
    return kernels.checked_int32(x.sum(axis=tuple(int(axis) for axis in axes), keepdims=keep, dtype=np.int64))


def _resize(node: Node, inputs: Inputs) -> Array:
    x, factors = images_of(inputs), required(inputs, 2)
    expected = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    found = {name: node.attributes.get(name) for name in expected}
    if found != expected or factors.shape != (4,) or np.any(factors[:2] != 1) or np.any(factors != np.rint(factors)):
        raise ValueError(f"only Resize that repeats pixels is supported, not {found} by {factors.tolist()}")
    rows, columns = (int(factor) for factor in factors[2:])
    return x.repeat(rows, axis=2).repeat(columns, axis=3)


def _multiply(_node: Node, inputs: Inputs) -> Array:
    return kernels.multiply(required(inputs, 0), required(inputs, 1))


def _pad(_node: Node, inputs: Inputs) -> Array:
    x, value, axes = required(inputs, 0), optional(inputs, 2), optional(inputs, 3)
    return kernels.pad(
        x,
        pads=[int(count) for count in required(inputs, 1)],
        value=np.zeros((), x.dtype) if value is None else value,
        axes=range(x.ndim) if axes is None else [int(axis) for axis in axes],
    )


def _matmul_nbits(node: Node, inputs: Inputs) -> Array:
    outputs, columns, bits = integer(node, "N", 0), integer(node, "K", 0), integer(node, "bits", 4)
    block, level = integer(node, "block_size", 0), integer(node, "accuracy_level", 0)
    a, b, scales = (required(inputs, index) for index in range(3))
    if len(inputs) > 4:
        raise ValueError(f"{len(inputs)} inputs are given; only data, weights, scales and zero points are supported")
    check_blocks(b, (outputs, columns), bits, block)
    check_zero_points(inputs[3] if len(inputs) > 3 else None, outputs, columns // block, bits)
    scales = scales.reshape(outputs, -1)
    products = [
        matmul_nbits(a, unpack_blocks(b[some], (len(b[some]), columns), bits, block), scales[some], bits, level)
        for some in kernels.blocks(outputs, columns)
    ]
    return np.concatenate(products, axis=1)


def _kept_in_float(node: Node, _inputs: Inputs) -> Array:
    raise ValueError(
        f"{node.name!r} is kept in float, and the integer reference computes integers only; "
        "`verify` compares such a file with ONNX Runtime"
    )


_WINDOW = frozenset({"kernel_shape", "strides", "dilations", "pads"})
_OPERATORS: dict[tuple[str, str], Operator] = {
    ("", "QLinearConv"): Operator(_qlinear_conv, costs.convolved, _WINDOW | {"group"}),
    (MICROSOFT, "QGemm"): Operator(_qgemm, costs.multiplied, frozenset({"transB"})),
    (MICROSOFT, "QLinearAdd"): Operator(_qlinear_add, costs.quantized_sum),
    (MICROSOFT, "QLinearAveragePool"): Operator(
        _qlinear_average_pool, costs.pooled, _WINDOW | {"ceil_mode", "count_include_pad"}
    ),
    (MICROSOFT, "QLinearGlobalAveragePool"): Operator(_qlinear_global_average_pool, costs.same_size),
    ("", "Clip"): Operator(_clip, costs.broadcast),
    ("", "MaxPool"): Operator(_max_pool, costs.pooled, _WINDOW | {"ceil_mode"}),
    ("", "QuantizeLinear"): Operator(_quantize_linear, costs.on_grid, frozenset({"axis"})),
    ("", "DequantizeLinear"): Operator(_dequantize_linear, costs.on_grid, frozenset({"axis"})),
    ("", "Flatten"): Operator(_flatten, costs.same_size, frozenset({"axis"})),
    ("", "Reshape"): Operator(_reshape, costs.same_size),
    ("", "Identity"): Operator(_identity, costs.same_size),
    ("", "Concat"): Operator(_concat, costs.joined, frozenset({"axis"})),
    ("", "Cast"): Operator(_cast, costs.cast, frozenset({"to"})),
    ("", "Mul"): Operator(_multiply, costs.broadcast),
    ("", "Sub"): Operator(_subtract, costs.broadcast),
    ("", "ReduceSum"): Operator(_reduce_sum, costs.reduced, frozenset({"keepdims"})),
    ("", "Resize"): Operator(
        _resize, costs.resized, frozenset({"mode", "coordinate_transformation_mode", "nearest_mode", "cubic_coeff_a"})
    ),
    ("", "Pad"): Operator(_pad, costs.padded),
    ("", "Transpose"): Operator(_transpose, costs.same_size, frozenset({"perm"})),
    ("", "Expand"): Operator(_expand, costs.expanded),
    ("", "Add"): Operator(_add, costs.broadcast),
    (PART_DOMAIN, PART_OPERATOR): Operator(_kept_in_float, costs.nothing),
    (MICROSOFT, "MatMulNBits"): Operator(
        _matmul_nbits, costs.multiplied_nbits, frozenset({"N", "K", "bits", "block_size", "accuracy_level"})
    ),
}
