"""The arithmetic of the operators of an integer graph, one pure function per operator.

Codes are uint8 or int8 and represent values by their `Grid`, accumulators are exact integers that fit int32,
and `rint` rounds half to even. Convolutions and products of matrices have a file of their own, `products`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .windows import Window, pad_images, window_views

Array = npt.NDArray[Any]

# Elements of one block of what is computed element by element, in wider types on the way.
_PART_ELEMENTS = 1 << 16

Place = tuple[slice, ...]


def saturate(rounded: Array, dtype: npt.DTypeLike) -> Array:
    """Clip integer-valued floats to the range of `dtype` and convert."""
    limits = np.iinfo(np.dtype(dtype))
    return np.clip(rounded, limits.min, limits.max).astype(dtype)


def parts(shape: Sequence[int], most: int = _PART_ELEMENTS) -> Iterator[Place]:
    """Yield slices that cut an array of this shape into parts of at most `most` elements, along its longest axes."""
    waiting: list[tuple[tuple[int, int], ...]] = [tuple((0, size) for size in shape)]
    while waiting:
        ranges = waiting.pop()
        sizes = [stop - start for start, stop in ranges]
        if math.prod(sizes) <= most:
            yield tuple(slice(start, stop) for start, stop in ranges)
            continue
        axis = sizes.index(max(sizes))
        start, stop = ranges[axis]
        middle = (start + stop) // 2
        waiting += [(*ranges[:axis], half, *ranges[axis + 1 :]) for half in ((middle, stop), (start, middle))]


def blocks(rows: int, columns: int, most: int = _PART_ELEMENTS) -> list[slice]:
    """Cut rows into slices of at most so many elements, or of one row."""
    step = max(1, most // max(1, columns))
    return [slice(start, start + step) for start in range(0, rows, step)]


def elementwise(function: Callable[..., Array], dtype: npt.DTypeLike, *operands: Array) -> Array:
    """Apply a function of broadcasting arrays part by part, so that wide temporary types take little memory."""
    result = np.empty(np.broadcast_shapes(*(operand.shape for operand in operands)), dtype)
    whole = [np.broadcast_to(operand, result.shape) for operand in operands]
    for part in parts(result.shape):
        result[part] = function(*(operand[part] for operand in whole))
    return result


@dataclass(frozen=True)
class Grid:
    """Grid of codes, whose values are scale * (code - zero_point).

    Attributes:
        scale: float32, a scalar, or one per output channel for weights.
        zero_point: of the codes' dtype, a scalar, or one per output channel for weights.
    """

    scale: Array
    zero_point: Array


def output_multiplier(x: Grid, w: Grid, y: Grid) -> Array:
    """Combine three scales to M = float32(float32(x * w) / y), flat: one entry, or one per channel.

    Raises:
        ValueError: it is no finite number.
    """
    multiplier: Array = x.scale.astype(np.float32) * w.scale.astype(np.float32) / y.scale.astype(np.float32)
    if not np.all(np.isfinite(multiplier)):
        raise ValueError("the multiplier of its three scales is not a finite number")
    return multiplier.reshape(-1)


def requantize(accumulator: Array, multiplier: Array, zero_point: Array) -> Array:
    """Turn exact sums into codes: saturate(rint(float32(acc) * M) + zero_point).

    Args:
        accumulator: integers, in any type that holds them exactly.
        multiplier: float32 `M`, broadcastable to the accumulator.
        zero_point: scalar of the output's dtype.
    """
    scaled = np.multiply(accumulator.astype(np.float32, copy=False), multiplier, dtype=np.float32)
    np.rint(scaled, out=scaled)
    scaled += np.float32(zero_point)
    return saturate(scaled, zero_point.dtype)


def qlinear_add(a: Array, a_grid: Grid, b: Array, b_grid: Grid, y_grid: Grid) -> Array:
    """Add codes of two scales, broadcasting (com.microsoft QLinearAdd).

    rint((A - a_zero_point) * r_a + (B - b_zero_point) * r_b) + y_zero_point, saturated, r = float32(scale /
    y_scale). The sum is taken in float64, where its error cannot reach a tie: exported ratios are
    p/q, q odd.
    """
    dtype = y_grid.zero_point.dtype

    def add(a: Array, b: Array) -> Array:
        total = _rescale(a, a_grid, y_grid) + _rescale(b, b_grid, y_grid)
        return saturate(np.rint(total) + float(y_grid.zero_point), dtype)

    return elementwise(add, dtype, a, b)


def _rescale(codes: Array, grid: Grid, y_grid: Grid) -> Array:
    """Return (codes - zero_point) * float32(scale / y_scale) in float64."""
    ratio = grid.scale.astype(np.float32) / y_grid.scale.astype(np.float32)
    return (codes.astype(np.float64) - float(grid.zero_point)) * float(ratio)


def qlinear_average_pool(x: Array, x_grid: Grid, y_grid: Grid, window: Window, *, count_include_pad: bool) -> Array:
    """Average codes [N, C, H, W] over windows (com.microsoft QLinearAveragePool).

    rint(sum(X - x_zero_point) * x_scale / (y_scale * n)) + y_zero_point, saturated; the sum is an exact
    integer, n the number of elements of the window inside the image, or inside image and padding if
    count_include_pad.
    """
    size = window.output_size(*x.shape[2:])
    counts = np.array(math.prod(window.kernel)) if count_include_pad else window.count_inside(*x.shape[2:])
    y = np.empty((*x.shape[:2], *size), y_grid.zero_point.dtype)
    for planes in parts(x.shape[:2], _planes_at_once(x)):
        centred = x[planes].astype(np.int32) - x_grid.zero_point.astype(np.int32)
        sums = window_views(pad_images(centred, window, 0), window, size).sum(axis=(2, 3), dtype=np.int64)
        y[planes] = _average_codes(sums, counts, x_grid, y_grid)
    return y


def _planes_at_once(x: Array) -> int:
    """Return how many planes of [N, C, H, W] can be widened at a time."""
    return max(1, _PART_ELEMENTS // max(1, math.prod(x.shape[2:])))


def qlinear_global_average_pool(x: Array, x_grid: Grid, y_grid: Grid) -> Array:
    """Average codes [N, C, ...] over all positions (com.microsoft QLinearGlobalAveragePool).

    The same rescale as `qlinear_average_pool` with n the number of positions.
    """
    count = math.prod(x.shape[2:])
    sums = x.sum(axis=tuple(range(2, x.ndim)), keepdims=True, dtype=np.int64) - int(x_grid.zero_point) * count
    return _average_codes(sums, np.array(count), x_grid, y_grid)


def _average_codes(sums: Array, counts: Array, x_grid: Grid, y_grid: Grid) -> Array:
    rounded = np.rint(sums * float(x_grid.scale) / (float(y_grid.scale) * counts))
    return saturate(rounded + float(y_grid.zero_point), y_grid.zero_point.dtype)


def max_pool(x: Array, window: Window) -> Array:
    """Take the largest element of each window of [N, C, H, W] (ONNX MaxPool); padding never wins."""
    lowest = np.iinfo(x.dtype).min if np.issubdtype(x.dtype, np.integer) else -np.inf
    size = window.output_size(*x.shape[2:])
    y = np.empty((*x.shape[:2], *size), x.dtype)
    for planes in parts(x.shape[:2], _planes_at_once(x)):
        views = window_views(pad_images(x[planes], window, lowest), window, size)
        largest = views[:, :, 0, 0].copy()
        for row in range(window.kernel[0]):
            for column in range(window.kernel[1]):
                np.maximum(largest, views[:, :, row, column], out=largest)
        y[planes] = largest
    return y


def quantize_linear(x: Array, grid: Grid) -> Array:
    """Map values to codes (ONNX QuantizeLinear).

    saturate(rint(x / scale) + zero_point), the quotient in float32; the grid broadcasts to x.
    """

    def quantize(x: Array, scale: Array, zero_point: Array) -> Array:
        rounded = np.rint(np.divide(x, scale, dtype=np.float32))
        return saturate(rounded + zero_point.astype(np.float32), zero_point.dtype)

    return elementwise(quantize, grid.zero_point.dtype, x, grid.scale, grid.zero_point)


def dequantize_linear(x: Array, grid: Grid) -> Array:
    """Map codes to values (ONNX DequantizeLinear): float32(X - zero_point) * scale, broadcasting."""

    def dequantize(x: Array, scale: Array, zero_point: Array) -> Array:
        centred = x.astype(np.int64) - zero_point.astype(np.int64)
        return np.multiply(centred.astype(np.float32), scale, dtype=np.float32)

    return elementwise(dequantize, np.float32, x, grid.scale, grid.zero_point)


def upsample_bilinear(x: Array, rows: int, columns: int) -> Array:
    """Upsample codes [N, C, H, W] by powers of two (ONNX Resize, linear, half_pixel), rounded down.

    Along an axis, result `o` lies at `(2 o + 1 - f) / (2 f)`, not beyond the first and last pixel; between pixels `a`
    and `b` it is `(2 f - r) a + r b`, over `2 f`. Both axes together are exact integers until the fraction is cut off.
    """
    y = np.empty((*x.shape[:2], x.shape[2] * rows, x.shape[3] * columns), x.dtype)
    for planes in parts(x.shape[:2], max(1, _PART_ELEMENTS // max(1, math.prod(y.shape[2:])))):
        total = x[planes].astype(np.int64)
        for axis, factor in ((2, rows), (3, columns)):
            size = x.shape[axis]
            places = (2 * np.arange(size * factor) + 1 - factor).clip(0, 2 * factor * (size - 1))
            before, rest = np.divmod(places, 2 * factor)
            rest = rest.reshape((-1, 1) if axis == 2 else (1, -1))
            after = np.minimum(before + 1, size - 1)
            total = total.take(before, axis) * (2 * factor - rest) + total.take(after, axis) * rest
        y[planes] = total // (4 * rows * columns)
    return y


def pad(x: Array, pads: Sequence[int], value: Array, axes: Sequence[int], mode: str = "constant") -> Array:
    """Pad with a constant, or with the elements at the border or beyond it (ONNX Pad).

    `pads` lists how much is added before each axis, then how much after each; `mode` is constant, edge or reflect.
    """
    before_after = [(0, 0)] * x.ndim
    for index, axis in enumerate(axes):
        before_after[axis] = (pads[index], pads[index + len(axes)])
    if mode == "edge":
        return np.pad(x, before_after, "edge")
    if mode == "reflect":
        return np.pad(x, before_after, "reflect")
    return np.pad(x, before_after, constant_values=value.item())


def checked_int32(integers: Array) -> Array:
    """Convert int64 to int32.

    Raises:
        OverflowError: a number does not fit.
    """
    if integers.size and (integers.min() < -(2**31) or integers.max() >= 2**31):
        raise OverflowError(f"results span {integers.min()} to {integers.max()}, beyond int32")
    return integers.astype(np.int32)


def exact_int32(function: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
    """Apply an arithmetic function to int32 operands.

    Raises:
        ValueError: an operand has another type; sums of floats depend on who rounds them.
        OverflowError: a result leaves int32.
    """
    if a.dtype != np.int32 or b.dtype != np.int32:
        raise ValueError(f"operands are {a.dtype} and {b.dtype}; only int32 is supported")
    return elementwise(lambda a, b: checked_int32(function(a.astype(np.int64), b.astype(np.int64))), np.int32, a, b)


def multiply(a: Array, b: Array) -> Array:
    """Multiply (ONNX Mul), such as packed weight codes by the integer that spreads them over int8.

    Integers are exact; floats, such as an accumulator and its multiplier, are rounded once.

    Raises:
        OverflowError: a product leaves the integer type.
    """
    if not np.issubdtype(a.dtype, np.integer):
        return np.multiply(a, b)
    limits = np.iinfo(a.dtype)

    def exact(a: Array, b: Array) -> Array:
        wide: Array = a.astype(np.int64) * b.astype(np.int64)
        if wide.size and (wide.min() < limits.min or wide.max() > limits.max):
            raise OverflowError(f"products span {wide.min()} to {wide.max()}, beyond {limits.dtype}")
        return wide

    return elementwise(exact, a.dtype, a, b)
