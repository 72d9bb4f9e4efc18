"""Bounds on integers agree with exact arithmetic and float32."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qil_deploy.integers.bounds import (
    INT16_MAX,
    INT32_LIMIT,
    Operand,
    added,
    largest_pair,
    largest_sums,
    pooled,
    rounding_error_bound,
)
from qil_deploy.integers.ratios import choose_denominator, nearest_numerator

CODES = np.arange(256, dtype=np.float64)
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 6))


@given(weights=SHAPES.flatmap(lambda shape: arrays(np.int8, shape)), largest=st.integers(0, 255), data=st.data())
def test_no_accumulator_is_larger_than_the_bound_and_one_reaches_it(
    weights: np.ndarray, largest: int, data: st.DataObject
) -> None:
    bias = data.draw(arrays(np.int32, len(weights), elements=st.integers(-(2**30), 2**30)))
    bound = largest_sums(weights, largest, bias)
    codes = data.draw(arrays(np.int64, weights.shape[1], elements=st.integers(0, largest)))
    assert np.all(np.abs(weights.astype(np.int64) @ codes + bias) <= bound)
    reaching = np.sign(weights.astype(np.int64)) * largest * np.where(bias < 0, -1, 1)[:, None]
    np.testing.assert_array_equal(np.abs((weights * reaching).sum(1) + bias), bound)
    assert INT32_LIMIT == 2**31


def test_the_largest_weights_that_int16_takes() -> None:
    assert largest_pair(255, 63) <= INT16_MAX < largest_pair(255, 65)
    assert largest_pair(127, 127) <= INT16_MAX


@given(ratios=st.tuples(st.floats(0.01, 20), st.floats(0.01, 20)), zero_points=st.tuples(*[st.integers(0, 255)] * 3))
def test_additions_with_odd_denominators_carry_no_risk(
    ratios: tuple[float, float], zero_points: tuple[int, int, int]
) -> None:
    a_zero, b_zero, y_zero = zero_points
    terms = [(255 + a_zero) * ratios[0], (255 + b_zero) * ratios[1], float(y_zero)]
    q = choose_denominator(terms)
    a, b = (nearest_numerator(ratio, q) / q for ratio in ratios)
    rescaled = added(Operand(CODES, a_zero, a), Operand(CODES, b_zero, b), y_zero)
    assert rescaled.results.shape == (256, 256)
    assert rescaled.count_near_ties(-y_zero, 255 - y_zero) == 0
    assert rescaled.risk() < 1


def test_halves_are_ties() -> None:
    halves = added(Operand(CODES, 0, 0.5), Operand(np.zeros(1), 0, 1.0), 0)
    assert halves.risk() > 1
    assert halves.count_near_ties(0, 255) == 128


@pytest.mark.parametrize(("window", "ratio"), [(49, 1 / 49), (4, 3 / 7), (1, 0.5), (1000, 2.0**-9)])
def test_pooling_looks_at_every_sum_that_does_not_saturate(window: int, ratio: float) -> None:
    found = np.concatenate([some.results for some in pooled(window, (0, 255), 10, ratio, 0)])
    sums = np.arange(-10 * window, 245 * window + 1) * ratio
    np.testing.assert_array_equal(found[np.abs(found) < 511], sums[np.abs(sums) < 511])


@given(terms=st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=3))
def test_float32_errs_less_than_the_bound(terms: list[float]) -> None:
    total = np.float32(0)
    for term in terms:
        total = np.float32(total + np.float32(term))
    assert abs(float(total) - sum(terms)) <= rounding_error_bound(terms)


def test_a_device_asks_without_torch() -> None:
    script = "import sys; from qil_deploy.integers import largest_pair, added; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
