"""Rescale ratios that every instruction set rounds alike: fractions `p/q` with one odd `q`.

A rescale outside a convolution computes `rint(N / q)` for an integer `N = a*p_a + b*p_b - k` of codes `a`,
`b`. With `q` odd, `N / q` is never half an integer: the nearest it comes is `1/(2q)`. Float32 errs by less
than that as long as `q` is small enough for the size of the terms:

    ratios r = s_in/s_out carry two roundings (s_out to float32, the division), each product one, each of two
    sums one: error <= 5 * 2**-24 * (|a*r_a| + |b*r_b| + |k/q|)

so `q` is the largest odd number, at most 4095, with `1/(2q)` above that bound. Ratios so large that not even `q = 1`
is safe, where one step of the input is thousands of steps of the output, are first shrunk together with the offset:
which codes saturate at which end stays the same, but for the one in between.

A product of two codes, and the mean of a map, have one small ratio (some 1/256, or 1/window), which no `p/q` with the
`q` above comes near: here `q` is the odd number, up to that one, whose fraction comes nearest
(`nearest_fraction`). What is rescaled here is a whole number, exact before it is multiplied, so only results that do
not saturate count. Decimal ratios (0.011, say) have ties that float32 only approximates; there the products of
64-bit ARM and of browsers differ from those of x86-64.

ONNX Runtime's average pooling takes ratios below 256 only (and from 2**-32, which no `p/q` comes near). Where products
or sums of codes are multiplied by 255 or more, any but zero saturates: the ratio 255 gives every code that a larger one
would.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .bounds import rounding_error_bound

MAX_DENOMINATOR = 4095
LARGEST_DENOMINATOR = 2**31 - 1  # of `nearest_fraction`: ONNX Runtime takes ratios from 2**-32
_MOST_TRIED = 2**17 - 1
_BEYOND = 257.0  # output codes; whatever is larger saturates
_LARGEST_TERMS = 2.0**19
_SATURATING_RATIO = 255.0


def shrink_factor(largest_terms: Sequence[float]) -> float:
    """Return the factor on ratios and offset for which `choose_denominator` finds a `q`: 1 unless they are extreme.

    Args:
        largest_terms: as for `rounding_error_bound`.
    """
    total = sum(abs(term) for term in largest_terms)
    return min(1.0, _LARGEST_TERMS / total) if total else 1.0


def choose_denominator(largest_terms: Sequence[float], most: int = MAX_DENOMINATOR) -> int:
    """Return the largest odd `q` at which float32 cannot reach the next tie.

    Args:
        largest_terms: as for `rounding_error_bound`.
        most: the largest `q` to return, odd.

    Raises:
        ValueError: the terms are so large that not even `q = 1` is safe.
    """
    bound = rounding_error_bound(largest_terms)
    # Three quarters leave room for numerators that are rounded up a little.
    q = int(min(0.75 / (2 * bound), most)) if bound > 0 else most
    if q < 1:
        raise ValueError(f"terms of {list(largest_terms)} output codes are too large to be rescaled exactly")
    return q if q % 2 else q - 1


def nearest_numerator(ratio: float, q: int) -> int:
    """Return the `p >= 1` for which `p/q` is nearest to a positive ratio."""
    return max(1, round(ratio * q))


def nearest_fraction(ratio: float, largest: float, y_zero_point: int) -> tuple[int, int]:
    """Return `p` and an odd `q` with `p/q` near the ratio by which whole numbers are rescaled.

    Args:
        ratio: output codes per unit of a product of codes, or of a sum, positive; above 255 any but zero saturates.
        largest: magnitude of what is rescaled.
        y_zero_point: of the output.
    """
    ratio = min(ratio, _SATURATING_RATIO)
    most = choose_denominator([min(largest * ratio, _BEYOND), y_zero_point], LARGEST_DENOMINATOR)
    if 1 / ratio > _MOST_TRIED:
        q = min(most, 2 * int(0.5 / ratio) + 1)
        return 1, q
    denominators = np.arange(1, min(most, _MOST_TRIED) + 1, 2)
    numerators = np.maximum(np.rint(ratio * denominators), 1)
    best = int(np.abs(numerators / denominators - ratio).argmin())
    return int(numerators[best]), int(denominators[best])
