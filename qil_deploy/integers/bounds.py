"""The bounds that make integers the same on every machine, one function each.

    int32    max_k sum(|W_k|) * max|X| + |bias_k| < 2**31      `largest_sums`: no accumulator overflows
    int16    2 * max|X| * max|W| <= 32767                      `largest_pair`: no sum of two products saturates, as x86
                                                               without VNNI adds them
    ties     5 * 2**-24 * sum(|terms|) < distance to a tie     `rounding_error_bound`: float32 cannot err as far as the
                                                               next tie, in whatever order a kernel computes

An addition or an average pooling of codes rescales in float32. Its results, before they are rounded and the zero point
is added, are

    addition    (A - a_zero_point) * r_a + (B - b_zero_point) * r_b        r = scale / y_scale
    pooling     sum(X - x_zero_point) * r                                  r = x_scale / (y_scale * window)

    product     (A - a_zero_point) * (B - b_zero_point) * r                r = a_scale * b_scale / y_scale

and carry five roundings at most: two of each ratio, one of each product, two of the sums (`ratios`); a product,
three of the ratio, and one each of product and sum. A function of codes is a table of 256
results, each with the error of the function besides those roundings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

INT16_MAX: Final = 32767
INT32_LIMIT: Final = 2**31
_FLOAT32_ERROR = 5 * 2.0**-24
_SATURATED = 512.0  # codes; beyond, zero point and all, every result is the first or the last code
_BEYOND = 257.0  # codes; as above, for results that are not looked at
_SUMS_AT_ONCE = 1 << 20

_FUNCTION_ERROR = 2.0**-21  # of a sigmoid in float32; ONNX Runtime's was off by 1.7e-7 on x86-64

Integers = NDArray[np.int64]
Function: TypeAlias = Literal["sigmoid", "leaky relu"]
"""What tables of codes hold."""


def largest_pair(largest_code: int, largest_weight: int) -> int:
    """Return the largest sum of two products; above `INT16_MAX` x86 without VNNI saturates."""
    return 2 * largest_code * largest_weight


def largest_sums(weights: NDArray[Any], largest_code: int, bias: NDArray[Any]) -> Integers:
    """Return the largest magnitude of each output channel's accumulator, which has to stay below `INT32_LIMIT`.

    Args:
        weights: integers [C_out, ...].
        largest_code: largest magnitude that a code contributes.
        bias: integers [C_out], or one for all channels.
    """
    magnitudes = np.abs(weights.astype(np.int64)).reshape(len(weights), -1)
    return np.asarray(magnitudes.sum(1) * largest_code + np.abs(bias.astype(np.int64)))


def rounding_error_bound(largest_terms: Sequence[float]) -> float:
    """Largest error of a float32 rescale.

    Args:
        largest_terms: the largest magnitude of each term of the sum, in output codes.
    """
    return _FLOAT32_ERROR * sum(abs(term) for term in largest_terms)


@dataclass(frozen=True)
class Rescaled:
    """Results of a rescale, in output codes before rounding.

    Attributes:
        results: without the zero point.
        error: the largest that float32 makes.
    """

    results: NDArray[np.float64]
    error: float

    def risk(self, lowest: float = -256, highest: float = 256) -> float:
        """Return the error over the smallest distance from a tie; below 1, all machines round to the same code.

        Args:
            lowest, highest: results further out by more than half a code saturate, and do not count.
        """
        inside = (self.results > lowest - 0.5) & (self.results < highest + 0.5)
        return self.error / max(float(self._distances[inside].min(initial=0.5)), 1e-300)

    def count_near_ties(self, lowest: float, highest: float) -> int:
        """Count results that lie no further from a tie than the error, and do not saturate by a whole code."""
        inside = (self.results > lowest - 1) & (self.results < highest + 1)
        return int(np.count_nonzero((self._distances <= self.error) & inside))

    @property
    def _distances(self) -> NDArray[np.float64]:
        return np.abs(self.results - np.floor(self.results) - 0.5)


@dataclass(frozen=True)
class Operand:
    """One operand of an addition: all codes it can take, its zero point, and output codes per code of its own."""

    codes: NDArray[np.float64]
    zero_point: float
    ratio: float

    @property
    def terms(self) -> NDArray[np.float64]:
        """Its contributions to a result."""
        return (self.codes - self.zero_point) * self.ratio

    @property
    def largest_term(self) -> float:
        """Largest magnitude of its contribution, code and zero point taken separately."""
        return float((np.abs(self.codes).max(initial=0) + abs(self.zero_point)) * self.ratio)


def added(a: Operand, b: Operand, y_zero_point: float) -> Rescaled:
    """Return the results of an addition for every pair of codes, [codes of a, codes of b]."""
    results = a.terms[:, None] + b.terms[None]
    return Rescaled(results, rounding_error_bound([a.largest_term, b.largest_term, y_zero_point]))


def pooled(
    window: int, codes: tuple[int, int], x_zero_point: float, ratio: float, y_zero_point: float
) -> Iterator[Rescaled]:
    """Yield the results of an average pooling for every sum that does not saturate, some sums at a time.

    Args:
        window: pixels.
        codes: the smallest and the largest.
        x_zero_point, y_zero_point: of input and output.
        ratio: output codes per unit of a sum.
    """
    lowest, highest = (window * (code - x_zero_point) for code in codes)
    first, last = (int(np.clip(code / ratio, lowest, highest)) for code in (-_SATURATED, _SATURATED))
    largest = min(255 * window * ratio, _BEYOND)  # sums are whole numbers, exact before they are multiplied
    error = rounding_error_bound([largest, y_zero_point])
    for start in range(first, last + 1, _SUMS_AT_ONCE):
        sums = np.arange(start, min(start + _SUMS_AT_ONCE, last + 1), dtype=np.float64)
        yield Rescaled(sums * ratio, error)


def multiplied(a: Operand, b: Operand, y_zero_point: float) -> Rescaled:
    """Return the results of a product for every pair of codes, [codes of a, codes of b]; the ratio is both operands'.

    Results beyond the last code saturate, and float32 does not bring them back.
    """
    results = a.terms[:, None] * b.terms[None]
    largest = min(float(np.abs(results).max(initial=0)), _BEYOND)
    return Rescaled(results, rounding_error_bound([largest, y_zero_point]))


def table_values(function: Function, x: NDArray[np.float64], slope: float = 0.0) -> NDArray[np.float64]:
    """Evaluate a real function of those that tables of codes hold."""
    if function == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-np.clip(x, -700, 700))))
    return np.where(x < 0, slope * x, x)


def tabulated(function: Function, x: tuple[float, float], y: tuple[float, float], slope: float = 0.0) -> Rescaled:
    """Return the results of a table for every code.

    Args:
        function: what it holds.
        x, y: scale and zero point of input and output.
        slope: of a LeakyReLU, below zero.
    """
    values = (np.arange(256, dtype=np.float64) - x[1]) * x[0]
    results = table_values(function, values, slope) / y[0]
    largest = min(float(np.abs(results).max(initial=0)), _BEYOND)
    error = _FUNCTION_ERROR / y[0] if function == "sigmoid" else 0.0
    return Rescaled(results, error + rounding_error_bound([largest, y[1]]))
