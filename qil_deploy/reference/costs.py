"""Cost of each operator, computed from the shapes of its inputs: its result, and its temporary memory.

Kernels work through large arrays in blocks, whose size is fixed and not counted here. Besides results, copies of whole
inputs are counted: padded images, in the type that sums are made in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qil_deploy.onnx_io import Array, Node, data_type_name

from .arguments import Inputs, grid_along_axis, images_of, integer, optional, required, window_of
from .budget import Cost
from .windows import Window

# Of an operation that is no product of a sum, per element.
_PER_ELEMENT = 32
# Of a position of a pooling window, which is one step of an interpreter.
_PER_POSITION = 1 << 16
_COPIES = 2
_WIDEST = 8


def same_size(_node: Node, inputs: Inputs) -> Cost:
    """Cost of a result as large as the first input."""
    x = required(inputs, 0)
    return _cost(x.shape, x.dtype.itemsize)


def broadcast(_node: Node, inputs: Inputs) -> Cost:
    """Cost of a result as large as all inputs broadcast to one shape."""
    given = [value for value in inputs if value is not None]
    return _cost(np.broadcast_shapes(*(value.shape for value in given)), np.result_type(*given).itemsize)


def joined(_node: Node, inputs: Inputs) -> Cost:
    """Cost of a result as large as all inputs together."""
    given = [value for value in inputs if value is not None]
    itemsize = np.result_type(*given).itemsize if given else 1
    return _cost((sum(value.size for value in given),), itemsize)


def quantized_sum(_node: Node, inputs: Inputs) -> Cost:
    """Cost of the sum of two tensors of codes."""
    return _cost(np.broadcast_shapes(required(inputs, 0).shape, required(inputs, 3).shape), 1)


def on_grid(node: Node, inputs: Inputs) -> Cost:
    """Cost of QuantizeLinear and DequantizeLinear."""
    x = required(inputs, 0)
    grid = grid_along_axis(node, inputs, np.dtype(np.uint8))
    return _cost(np.broadcast_shapes(x.shape, grid.scale.shape, grid.zero_point.shape), np.dtype(np.float32).itemsize)


def cast(node: Node, inputs: Inputs) -> Cost:
    """Cost of the first input in another type."""
    return _cost(required(inputs, 0).shape, np.dtype(data_type_name(integer(node, "to", 0))).itemsize)


def expanded(_node: Node, inputs: Inputs) -> Cost:
    """Cost of Expand."""
    x = required(inputs, 0)
    return _cost(np.broadcast_shapes(x.shape, _sizes(required(inputs, 1))), x.dtype.itemsize)


def reduced(_node: Node, inputs: Inputs) -> Cost:
    """Cost of a sum over axes, computed in a wider type."""
    x = required(inputs, 0)
    return _cost(x.shape, _WIDEST)


def padded(_node: Node, inputs: Inputs) -> Cost:
    """Cost of Pad: at most all of its pads on all axes that it names."""
    x, pads, axes = required(inputs, 0), _sizes(required(inputs, 1)), optional(inputs, 3)
    shape = list(x.shape)
    named = range(x.ndim) if axes is None else _sizes(axes)
    for index, axis in enumerate(named):
        shape[axis] += max(pads[index], 0) + max(pads[index + len(named)], 0)
    return _cost(shape, x.dtype.itemsize)


def resized(_node: Node, inputs: Inputs) -> Cost:
    """Cost of Resize."""
    x, factors = required(inputs, 0), required(inputs, 2)
    shape = [size * max(math.ceil(factor), 1) for size, factor in zip(x.shape, factors.ravel().tolist(), strict=False)]
    return _cost(shape, x.dtype.itemsize)


def convolved(node: Node, inputs: Inputs) -> Cost:
    """Cost of QLinearConv."""
    return _convolution(node, images_of(inputs), required(inputs, 3), 1)


def convolved_to_sums(node: Node, inputs: Inputs) -> Cost:
    """Cost of ConvInteger."""
    return _convolution(node, images_of(inputs), required(inputs, 1), np.dtype(np.int32).itemsize)


def _convolution(node: Node, x: Array, w: Array, itemsize: int) -> Cost:
    window = window_of(node, w.shape[2:])
    shape = (len(x), len(w), *window.output_size(*x.shape[2:]))
    products = math.prod(shape) * math.prod(w.shape[1:])
    weights = _COPIES * _WIDEST * w.size
    working = _images(x, window, _WIDEST) // max(len(x), 1) + weights
    return _cost(shape, itemsize, working=working, operations=products)


def pooled(node: Node, inputs: Inputs) -> Cost:
    """Cost of a pooling."""
    x = images_of(inputs)
    window = window_of(node, [])
    shape = (*x.shape[:2], *window.output_size(*x.shape[2:]))
    operations = math.prod(window.kernel) * (_PER_ELEMENT * math.prod(shape) + _PER_POSITION)
    planes = max(math.prod(x.shape[:2]), 1)
    counts = _WIDEST * sum(sizes * kernel for sizes, kernel in zip(shape[2:], window.kernel, strict=True))
    working = (_images(x, window, _WIDEST) + 3 * _WIDEST * math.prod(shape)) // planes + counts
    return _cost(shape, x.dtype.itemsize, working=working, operations=operations)


def multiplied(node: Node, inputs: Inputs) -> Cost:
    """Cost of QGemm."""
    a, b = required(inputs, 0), required(inputs, 3)
    if a.ndim != 2 or b.ndim != 2:
        raise ValueError(f"data of shape {list(a.shape)} and weights of shape {list(b.shape)} are no matrices")
    outputs = b.shape[0 if integer(node, "transB", 0) else 1]
    return _matrix(a, outputs)


def multiplied_nbits(node: Node, inputs: Inputs) -> Cost:
    """Cost of MatMulNBits."""
    a = required(inputs, 0)
    if a.ndim != 2:
        raise ValueError(f"data of shape {list(a.shape)} are no matrix")
    return _matrix(a, max(integer(node, "N", 0), 0))


def nothing(_node: Node, _inputs: Inputs) -> Cost:
    """Cost of an operator that is not executed."""
    return Cost(bytes=0)


def _matrix(a: Array, outputs: int) -> Cost:
    working = _COPIES * _WIDEST * (a.size + len(a) * outputs)
    return _cost((len(a), outputs), 4, working=working, operations=a.size * outputs)


def _images(x: Array, window: Window, itemsize: int) -> int:
    """Return the size in bytes of copies of images, padded as far as all windows need."""
    reach = [
        max(size, (count - 1) * stride + extent)
        for size, count, stride, extent in zip(
            x.shape[2:], window.output_size(*x.shape[2:]), window.strides, window.extent, strict=True
        )
    ]
    return _COPIES * itemsize * int(math.prod((*x.shape[:2], *reach)))


def _sizes(value: Array) -> tuple[int, ...]:
    return tuple(int(size) for size in value.ravel())


def _cost(shape: Sequence[int], itemsize: int, *, working: int = 0, operations: int = 0) -> Cost:
    elements = math.prod(int(size) for size in shape)
    return Cost(bytes=elements * itemsize, working=working, operations=operations + _PER_ELEMENT * elements)
