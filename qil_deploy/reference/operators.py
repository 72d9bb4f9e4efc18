"""From ONNX nodes to kernels: which inputs and attributes an operator has and which kernel computes it.

Every function here takes a node and its input arrays (None for an optional input that is left out) and
returns the node's one output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qil_deploy.onnx_file import Node
from qil_deploy.onnx_tensors import Array, data_type_name

from . import kernels
from .windows import Window

Inputs = Sequence[Array | None]

MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Operator:
    """How one ONNX operator is computed: its function, and the attributes that may take any value."""

    compute: Callable[[Node, Inputs], Array]
    attributes: frozenset[str] = frozenset()


def find_operator(node: Node) -> Operator:
    """Return the operator of a node.

    Raises:
        ValueError: the operator is unknown, or an attribute asks for what no kernel here computes.
    """
    operator = _OPERATORS.get((node.domain, node.op_type))
    if operator is None:
        surrounded = ""
        if node.op_type in ("Conv", "Gemm", "Add", "AveragePool", "GlobalAveragePool"):
            surrounded = "; in a QDQ file it has to stand between DequantizeLinear and QuantizeLinear"
        raise ValueError(f"no integer kernel exists for {node.domain or 'ai.onnx'} {node.op_type}{surrounded}")
    for name, value in node.attributes.items():
        if name in operator.attributes:
            continue
        if name not in _FIXED_ATTRIBUTES:
            raise ValueError(f"attribute {name!r} of {node.op_type} is not supported")
        if value != _FIXED_ATTRIBUTES[name]:
            raise ValueError(f"attribute {name!r} is {value!r}; only {_FIXED_ATTRIBUTES[name]!r} is supported")
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


def _required(inputs: Inputs, index: int) -> Array:
    value = inputs[index] if index < len(inputs) else None
    if value is None:
        raise ValueError(f"input {index} is missing")
    return value


def _optional(inputs: Inputs, index: int) -> Array | None:
    return inputs[index] if index < len(inputs) else None


def _grid(inputs: Inputs, index: int, dtype: np.dtype[Any]) -> kernels.Grid:
    """Return the grid of scale and zero point at inputs `index` and `index` + 1.

    ONNX writes scalars with or without a dimension of one; a zero point that is left out is 0 of type
    `dtype`.
    """
    scale, zero_point = _required(inputs, index), _optional(inputs, index + 1)
    if zero_point is None:
        zero_point = np.zeros((), dtype)
    return kernels.Grid(*(value.reshape(()) if value.size == 1 else value for value in (scale, zero_point)))


def _scalar_grid(inputs: Inputs, index: int, dtype: np.dtype[Any]) -> kernels.Grid:
    """Return a grid like `_grid`, of one scale and one zero point for the whole tensor."""
    grid = _grid(inputs, index, dtype)
    if grid.scale.ndim or grid.zero_point.ndim:
        raise ValueError(f"inputs {index} and {index + 1} (scale and zero point) must be scalars")
    return grid


def _integers(node: Node, name: str, default: Sequence[int]) -> list[int]:
    value = node.attributes.get(name, default)
    return [int(entry) for entry in value]  # type: ignore[union-attr]  # a wrong type is a TypeError


def _integer(node: Node, name: str, default: int) -> int:
    return int(node.attributes.get(name, default))  # type: ignore[arg-type]  # a wrong type is a TypeError


def _window(node: Node, kernel: Sequence[int]) -> Window:
    kernel = _integers(node, "kernel_shape", kernel)
    pads = _integers(node, "pads", [0] * 4)
    strides = _integers(node, "strides", [1, 1])
    dilations = _integers(node, "dilations", [1, 1])
    if [len(kernel), len(strides), len(dilations), len(pads)] != [2, 2, 2, 4]:
        raise ValueError(f"kernel_shape {kernel} with pads {pads}: only two-dimensional windows are supported")
    if min(*kernel, *strides, *dilations) < 1 or min(pads) < 0:
        raise ValueError(f"kernel_shape {kernel}, strides {strides}, dilations {dilations}, pads {pads} make no window")
    return Window(
        kernel=(kernel[0], kernel[1]),
        strides=(strides[0], strides[1]),
        dilations=(dilations[0], dilations[1]),
        pads_begin=(pads[0], pads[1]),
        pads_end=(pads[2], pads[3]),
        ceil_mode=bool(_integer(node, "ceil_mode", 0)),
    )


def _images(inputs: Inputs) -> Array:
    x = _required(inputs, 0)
    if x.ndim != 4:
        raise ValueError(f"an input of shape {list(x.shape)} is not [N, C, H, W]")
    return x


def _qlinear_conv(node: Node, inputs: Inputs) -> Array:
    x, w = _images(inputs), _required(inputs, 3)
    return kernels.qlinear_conv(
        x,
        _scalar_grid(inputs, 1, x.dtype),
        w,
        _grid(inputs, 4, w.dtype),
        _scalar_grid(inputs, 6, x.dtype),
        bias=_optional(inputs, 8),
        window=_window(node, w.shape[2:]),
        groups=_integer(node, "group", 1),
    )


def _qgemm(node: Node, inputs: Inputs) -> Array:
    a, b = _required(inputs, 0), _required(inputs, 3)
    return kernels.qgemm(
        a,
        _scalar_grid(inputs, 1, a.dtype),
        b,
        _grid(inputs, 4, b.dtype),
        None if _optional(inputs, 7) is None else _scalar_grid(inputs, 7, a.dtype),
        bias=_optional(inputs, 6),
        transpose_b=bool(_integer(node, "transB", 0)),
    )


def _qlinear_add(_node: Node, inputs: Inputs) -> Array:
    a, b = _required(inputs, 0), _required(inputs, 3)
    grids = [_scalar_grid(inputs, index, a.dtype) for index in (1, 4, 6)]
    return kernels.qlinear_add(a, grids[0], b, grids[1], grids[2])


def _qlinear_average_pool(node: Node, inputs: Inputs) -> Array:
    x = _images(inputs)
    return kernels.qlinear_average_pool(
        x,
        _scalar_grid(inputs, 1, x.dtype),
        _scalar_grid(inputs, 3, x.dtype),
        _window(node, []),
        count_include_pad=bool(_integer(node, "count_include_pad", 0)),
    )


def _qlinear_global_average_pool(_node: Node, inputs: Inputs) -> Array:
    x = _required(inputs, 0)
    grids = [_scalar_grid(inputs, index, x.dtype) for index in (1, 3)]
    return kernels.qlinear_global_average_pool(x, grids[0], grids[1])


def _clip(_node: Node, inputs: Inputs) -> Array:
    x, low, high = _required(inputs, 0), _optional(inputs, 1), _optional(inputs, 2)
    if low is not None:
        x = np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


def _max_pool(node: Node, inputs: Inputs) -> Array:
    return kernels.max_pool(_images(inputs), _window(node, []))


def _grid_along_axis(node: Node, inputs: Inputs, dtype: np.dtype[Any]) -> kernels.Grid:
    """Shape a per-channel grid at inputs 1 and 2 so that it broadcasts along the node's axis of input 0."""
    grid = _grid(inputs, 1, dtype)
    shape = [1] * _required(inputs, 0).ndim
    if shape:
        shape[_integer(node, "axis", 1 if len(shape) > 1 else 0)] = -1
    return kernels.Grid(*(value.reshape(shape) if value.ndim else value for value in (grid.scale, grid.zero_point)))


def _quantize_linear(node: Node, inputs: Inputs) -> Array:
    grid = _grid_along_axis(node, inputs, np.dtype(np.uint8))
    return kernels.quantize_linear(_required(inputs, 0), grid)


def _dequantize_linear(node: Node, inputs: Inputs) -> Array:
    x = _required(inputs, 0)
    return kernels.dequantize_linear(x, _grid_along_axis(node, inputs, x.dtype))


def _flatten(node: Node, inputs: Inputs) -> Array:
    x = _required(inputs, 0)
    axis = _integer(node, "axis", 1) % (x.ndim + 1)
    return x.reshape(int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:])))


def _reshape(_node: Node, inputs: Inputs) -> Array:
    x, shape = _required(inputs, 0), _required(inputs, 1)
    return x.reshape([x.shape[axis] if size == 0 else int(size) for axis, size in enumerate(shape)])


def _identity(_node: Node, inputs: Inputs) -> Array:
    return _required(inputs, 0)


def _concat(node: Node, inputs: Inputs) -> Array:
    return np.concatenate([_required(inputs, index) for index in range(len(inputs))], _integer(node, "axis", 0))


def _cast(node: Node, inputs: Inputs) -> Array:
    return _required(inputs, 0).astype(data_type_name(_integer(node, "to", 0)))


def _subtract(_node: Node, inputs: Inputs) -> Array:
    a, b = _required(inputs, 0), _required(inputs, 1)
    if a.dtype != np.int32 or b.dtype != np.int32:
        raise ValueError(f"Sub of {a.dtype} and {b.dtype} is not supported, only of int32")
    return np.subtract(a, b)


def _reduce_sum(node: Node, inputs: Inputs) -> Array:
    x, axes = _required(inputs, 0), _required(inputs, 1)
    if x.dtype != np.int32:
        raise ValueError(f"ReduceSum of {x.dtype} is not supported, only of int32")
    keep = bool(_integer(node, "keepdims", 1))
    total: Array = x.sum(axis=tuple(int(axis) for axis in axes), keepdims=keep, dtype=np.int64)
    return total.astype(np.int32)


def _resize(node: Node, inputs: Inputs) -> Array:
    x, factors = _images(inputs), _required(inputs, 2)
    expected = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    found = {name: node.attributes.get(name) for name in expected}
    if found != expected or factors.shape != (4,) or np.any(factors[:2] != 1) or np.any(factors != np.rint(factors)):
        raise ValueError(f"only Resize that repeats pixels is supported, not {found} by {factors.tolist()}")
    rows, columns = (int(factor) for factor in factors[2:])
    return x.repeat(rows, axis=2).repeat(columns, axis=3)


def _multiply(_node: Node, inputs: Inputs) -> Array:
    return kernels.multiply(_required(inputs, 0), _required(inputs, 1))


def _pad(_node: Node, inputs: Inputs) -> Array:
    x, value, axes = _required(inputs, 0), _optional(inputs, 2), _optional(inputs, 3)
    return kernels.pad(
        x,
        pads=[int(count) for count in _required(inputs, 1)],
        value=np.zeros((), x.dtype) if value is None else value,
        axes=range(x.ndim) if axes is None else [int(axis) for axis in axes],
    )


def _space_to_depth(node: Node, inputs: Inputs) -> Array:
    return kernels.space_to_depth(_images(inputs), _integer(node, "blocksize", 0))


_WINDOW = frozenset({"kernel_shape", "strides", "dilations", "pads"})
_OPERATORS: dict[tuple[str, str], Operator] = {
    ("", "QLinearConv"): Operator(_qlinear_conv, _WINDOW | {"group"}),
    (MICROSOFT, "QGemm"): Operator(_qgemm, frozenset({"transB"})),
    (MICROSOFT, "QLinearAdd"): Operator(_qlinear_add),
    (MICROSOFT, "QLinearAveragePool"): Operator(_qlinear_average_pool, _WINDOW | {"ceil_mode", "count_include_pad"}),
    (MICROSOFT, "QLinearGlobalAveragePool"): Operator(_qlinear_global_average_pool),
    ("", "Clip"): Operator(_clip),
    ("", "MaxPool"): Operator(_max_pool, _WINDOW | {"ceil_mode"}),
    ("", "QuantizeLinear"): Operator(_quantize_linear, frozenset({"axis"})),
    ("", "DequantizeLinear"): Operator(_dequantize_linear, frozenset({"axis"})),
    ("", "Flatten"): Operator(_flatten, frozenset({"axis"})),
    ("", "Reshape"): Operator(_reshape),
    ("", "Identity"): Operator(_identity),
    ("", "Concat"): Operator(_concat, frozenset({"axis"})),
    ("", "Cast"): Operator(_cast, frozenset({"to"})),
    ("", "Mul"): Operator(_multiply),
    ("", "Sub"): Operator(_subtract),
    ("", "ReduceSum"): Operator(_reduce_sum, frozenset({"keepdims"})),
    ("", "Resize"): Operator(
        _resize, frozenset({"mode", "coordinate_transformation_mode", "nearest_mode", "cubic_coeff_a"})
    ),
    ("", "Pad"): Operator(_pad),
    ("", "SpaceToDepth"): Operator(_space_to_depth, frozenset({"blocksize"})),
}
