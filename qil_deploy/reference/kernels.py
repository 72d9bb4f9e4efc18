"""The arithmetic of the operators of an integer graph, one pure function per operator.

Codes are uint8 or int8 and stand for values by their `Grid`, accumulators are exact integers that fit int32,
and `rint` rounds half to even.

Sums of integer products are computed by BLAS in floating point, which is exact in any order of summation
while no partial sum can reach 2**24 (float32) or 2**53 (float64): `exact_float` chooses.
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

# Elements of one block of im2col columns: small enough to stay in a processor's cache between its uses.
_BLOCK_ELEMENTS = 1 << 19
# Elements of one block of what is computed element by element, in wider types on the way.
_PART_ELEMENTS = 1 << 16

Place = tuple[slice, ...]


def exact_float(bound: int) -> type[np.float32] | type[np.float64]:
    """Return the float type in which integers up to `bound` in magnitude add up without rounding."""
    return np.float32 if bound < 2**24 else np.float64


def saturate(rounded: Array, dtype: npt.DTypeLike) -> Array:
    """Clip integer-valued floats to the range of `dtype` and convert."""
    limits = np.iinfo(np.dtype(dtype))
    return np.clip(rounded, limits.min, limits.max).astype(dtype)


def parts(shape: Sequence[int], most: int = _PART_ELEMENTS) -> Iterator[Place]:
    """Yield slices that cut an array of this shape into parts of at most so many elements, along its longest axes."""
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
    """Apply a function of broadcasting arrays part by part, so that wide types on the way take little memory."""
    result = np.empty(np.broadcast_shapes(*(operand.shape for operand in operands)), dtype)
    whole = [np.broadcast_to(operand, result.shape) for operand in operands]
    for part in parts(result.shape):
        result[part] = function(*(operand[part] for operand in whole))
    return result


@dataclass(frozen=True)
class Grid:
    """What codes stand for: scale * (code - zero_point).

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
        raise ValueError("its three scales make a multiplier that is no finite number")
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


def qlinear_conv(
    x: Array,
    x_grid: Grid,
    w: Array,
    w_grid: Grid,
    y_grid: Grid,
    bias: Array | None,
    window: Window,
    groups: int,
) -> Array:
    """Convolve codes (ONNX QLinearConv).

    acc[k] = sum((X - x_zero_point) * (W[k] - w_zero_point)) + bias[k], exact in int32; padding contributes 0,
    that is, it pads with x_zero_point. Then `requantize` with M[k] = float32(float32(x_scale * w_scale[k]) /
    y_scale).

    Args:
        x: codes [N, Ci, H, W], uint8 or int8.
        x_grid: scalars.
        w: codes [Co, Ci / groups, kh, kw].
        w_grid: scalars or [Co].
        y_grid: scalars; its zero point's dtype is the result's.
        bias: int32 [Co] or None.
        window: kernel, strides, dilations and pads.
        groups: number of groups; Ci for a depthwise convolution.

    Returns:
        codes [N, Co, OH, OW].

    Raises:
        ValueError: shapes that do not match.
        OverflowError: an accumulator leaves int32.
    """
    multiplier = output_multiplier(x_grid, w_grid, y_grid)[:, None]
    zero_point = y_grid.zero_point

    def requantized(accumulator: Array) -> Array:
        return requantize(accumulator, multiplier, zero_point)

    return _convolve(
        x, x_grid.zero_point, w, w_grid.zero_point, bias, window, groups, finish=requantized, dtype=zero_point.dtype
    )


def conv_integer(x: Array, x_zero_point: Array, w: Array, w_zero_point: Array, window: Window, groups: int) -> Array:
    """Convolve codes to their exact sums, int32 [N, Co, OH, OW] (ONNX ConvInteger); arguments as of `qlinear_conv`.

    Raises:
        ValueError: shapes that do not match.
        OverflowError: a sum leaves int32.
    """
    return _convolve(
        x, x_zero_point, w, w_zero_point, None, window, groups, finish=lambda sums: sums, dtype=np.dtype(np.int32)
    )


def _convolve(  # noqa: PLR0913 - a convolution has as many
    x: Array,
    x_zero_point: Array,
    w: Array,
    w_zero_point: Array,
    bias: Array | None,
    window: Window,
    groups: int,
    *,
    finish: Callable[[Array], Array],
    dtype: np.dtype[Any],
) -> Array:
    """Return what `finish` makes of the sums [Co, places] of a convolution, [N, Co, OH, OW] of a type."""
    channels_out, channels_per_group = w.shape[:2]
    if tuple(w.shape[2:]) != window.kernel:
        raise ValueError(f"weights of shape {list(w.shape)} do not fit a window of {list(window.kernel)}")
    if x.shape[1] != channels_per_group * groups or channels_out % groups:
        raise ValueError(f"{x.shape[1]} channels do not fit weights of shape {list(w.shape)} in {groups} groups")
    centred = _centre_weights(w, w_zero_point)
    offsets = _integer_bias(bias, channels_out)
    sum_bound, total_bound = _bounds(x, x_zero_point, centred.reshape(channels_out, -1), offsets)
    kind = exact_float(sum_bound)
    matrix = centred.astype(kind).reshape(groups, channels_out // groups, -1)
    column = offsets.astype(exact_float(total_bound))[:, None]
    rows, columns = window.output_size(*x.shape[2:])
    y = np.empty((x.shape[0], channels_out, rows, columns), dtype)
    taps = x.shape[1] * window.kernel[0] * window.kernel[1]

    def compute(images: Array, y: Array) -> None:
        views = _columns(images, x_zero_point, window, kind)
        for place in parts(views.shape[3:], max(1, _BLOCK_ELEMENTS // max(1, taps))):
            y[place[0], :, *place[1:]] = finished(views[:, :, :, *place])

    def finished(views: Array) -> Array:
        patches = np.ascontiguousarray(views).reshape(groups, matrix.shape[2], -1)
        accumulator: Array = (matrix @ patches).reshape(channels_out, -1)
        accumulator = accumulator + column
        _check_int32(accumulator, total_bound)
        return (
            finish(accumulator).astype(dtype, copy=False).reshape(channels_out, *views.shape[3:]).transpose(1, 0, 2, 3)
        )

    for images in blocks(x.shape[0], taps * rows * columns, _BLOCK_ELEMENTS):
        compute(x[images], y[images])  # in functions, so that a block is freed before the next one takes memory
    return y


def _columns(x: Array, zero_point: Array, window: Window, kind: npt.DTypeLike) -> Array:
    """View [N, C, H, W] as columns [C, kh, kw, N, OH, OW] of X - zero_point."""
    centred = np.subtract(x.transpose(1, 0, 2, 3), zero_point, dtype=kind, casting="unsafe")
    padded = pad_images(centred, window, 0)
    return window_views(padded, window, window.output_size(*x.shape[2:])).transpose(0, 2, 3, 1, 4, 5)


def _centre_weights(w: Array, zero_point: Array) -> Array:
    """Subtract the scalar or per-output-channel zero point, in int32."""
    return w.astype(np.int32) - zero_point.astype(np.int32).reshape((-1,) + (1,) * (w.ndim - 1))


def _integer_bias(bias: Array | None, channels: int) -> Array:
    """Return one int64 per output channel: zeros for no bias, repeated where the bias has one entry."""
    return np.broadcast_to(np.int64(0) if bias is None else bias.astype(np.int64).ravel(), (channels,))


def _bounds(x: Array, x_zero_point: Array, matrix: Array, bias: Array) -> tuple[int, int]:
    """Bound any partial sum of `matrix` [Co, K] with these codes, without and with the bias."""
    if x.size == 0 or matrix.size == 0:
        return 0, int(np.abs(bias).max(initial=0))
    zero = int(x_zero_point)
    largest = max(int(x.max()) - zero, zero - int(x.min()))
    sums = np.abs(matrix).sum(axis=1, dtype=np.int64) * largest
    return int(sums.max()), int((sums + np.abs(bias)).max())


def _check_int32(accumulator: Array, bound: int) -> None:
    if bound >= 2**31 and (accumulator.max() >= 2**31 or accumulator.min() < -(2**31)):
        raise OverflowError(f"an accumulator spans {accumulator.min():.0f} to {accumulator.max():.0f}, beyond int32")


def qgemm(
    a: Array,
    a_grid: Grid,
    b: Array,
    b_grid: Grid,
    y_grid: Grid | None,
    bias: Array | None,
    *,
    transpose_b: bool,
) -> Array:
    """Multiply codes by a weight matrix (com.microsoft QGemm).

    acc[n, k] = sum((A[n] - a_zero_point) * (B[k] - b_zero_point)) + bias[k], exact in int32. With a grid for
    the result, `requantize` with M[k] = float32(float32(a_scale * b_scale[k]) / y_scale). Without one the
    result is
    float32: float32(acc) * float32(a_scale * b_scale[k]).

    Args:
        a: codes [N, K].
        a_grid: scalars.
        b: codes [M, K] if transpose_b, else [K, M].
        b_grid: scalars or [M].
        y_grid: scalars, or None for float32 logits.
        bias: int32 [M], [1, M] or one for all; or None.
        transpose_b: the layout of b.

    Returns:
        codes or logits [N, M].

    Raises:
        ValueError: shapes that do not match.
        OverflowError: an accumulator leaves int32.
    """
    weights = b if transpose_b else b.T
    if a.ndim != 2 or a.shape[1] != weights.shape[1]:
        raise ValueError(f"data of shape {list(a.shape)} do not fit weights of {weights.shape[1]} inputs")
    outputs = len(weights)
    offsets = _integer_bias(bias, outputs)
    scales, zero_points = (np.broadcast_to(value.ravel(), (outputs,)) for value in (b_grid.scale, b_grid.zero_point))
    result = np.empty((len(a), outputs), np.float32 if y_grid is None else y_grid.zero_point.dtype)
    for some in blocks(outputs, weights.shape[1]):
        grid = Grid(scales[some], zero_points[some])
        result[:, some] = _multiply_codes(a, a_grid, weights[some], grid, y_grid, offsets[some])
    return result


def _multiply_codes(a: Array, a_grid: Grid, weights: Array, grid: Grid, y_grid: Grid | None, offsets: Array) -> Array:
    """Return some columns of what `qgemm` returns; `weights` are [M, K]."""
    centred = _centre_weights(weights, grid.zero_point)
    sum_bound, total_bound = _bounds(a, a_grid.zero_point, centred, offsets)
    kind = exact_float(sum_bound)
    sums = np.subtract(a, a_grid.zero_point, dtype=kind, casting="unsafe") @ centred.astype(kind).T
    accumulator = sums + offsets.astype(exact_float(total_bound))
    _check_int32(accumulator, total_bound)
    if y_grid is not None:
        return requantize(accumulator, output_multiplier(a_grid, grid, y_grid), y_grid.zero_point)
    scale: Array = a_grid.scale.astype(np.float32) * grid.scale.astype(np.float32)
    logits: Array = np.multiply(accumulator.astype(np.float32), scale.reshape(-1), dtype=np.float32)
    return logits


def qlinear_add(a: Array, a_grid: Grid, b: Array, b_grid: Grid, y_grid: Grid) -> Array:
    """Add codes of two scales, broadcasting (com.microsoft QLinearAdd).

    rint((A - a_zero_point) * r_a + (B - b_zero_point) * r_b) + y_zero_point, saturated, r = float32(scale /
    y_scale). The sum is taken in float64, where it is off by less than any tie is near: exported ratios are
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
    """Return how many planes of [N, C, H, W] are few enough to be widened."""
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
    """Pad with a constant, or with the elements at the border or behind it (ONNX Pad).

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
