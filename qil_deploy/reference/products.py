"""Convolutions and products of matrices of an integer graph: exact sums of products of codes, then one rounding.

The sums are computed by BLAS in floating point, which is exact in any order of summation while no partial sum can reach
2**24 (float32) or 2**53 (float64): `exact_float` chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .kernels import Array, Grid, blocks, output_multiplier, parts, requantize
from .windows import Window, pad_images, window_views

# Elements of one block of im2col columns: small enough to stay in a processor's cache between its uses.
_BLOCK_ELEMENTS = 1 << 19


def exact_float(bound: int) -> type[np.float32] | type[np.float64]:
    """Return the float type in which integers up to `bound` in magnitude add up without rounding."""
    return np.float32 if bound < 2**24 else np.float64


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
    """Return the results of `finish` for the sums [Co, places] of a convolution, [N, Co, OH, OW] of a type."""
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
    """Return one int64 per output channel: zeros for no bias, repeated if the bias has one entry."""
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
    """Return some columns of the result of `qgemm`; `weights` are [M, K]."""
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
