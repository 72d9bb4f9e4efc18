"""Ratios of products and tables of functions: no result is near a tie, and few change for that."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qil_deploy.integers.bounds import Function, Operand, multiplied, tabulated
from qil_deploy.integers.frozen_gates import FrozenTable
from qil_deploy.integers.frozen_modules import Grid
from qil_deploy.integers.ratios import nearest_fraction

CODES = np.arange(256, dtype=np.float64)


@given(
    exponent=st.floats(-7, 3),
    zero_points=st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255)),
)
def test_no_product_lies_near_a_tie(exponent: float, zero_points: tuple[int, int, int]) -> None:
    p, q = nearest_fraction(10**exponent, 255 * 255, zero_points[2])
    assert q % 2 == 1
    assert p >= 1
    products = multiplied(Operand(CODES, zero_points[0], p / q), Operand(CODES, zero_points[1], 1.0), zero_points[2])
    assert products.risk() < 1


@pytest.mark.parametrize("ratio", [1 / 256, 0.0037, 1 / 128, 0.011, 0.7])
def test_ratios_of_gates_are_missed_by_little(ratio: float) -> None:
    p, q = nearest_fraction(ratio, 255 * 255, 128)
    assert abs(p / q / ratio - 1) < 0.0005


@given(
    x_scale=st.floats(0.001, 1),
    y_scale=st.floats(0.0005, 0.02),
    zero_points=st.tuples(st.sampled_from((0, 128)), st.sampled_from((0, 128))),
    slope=st.none() | st.floats(0.01, 0.5),
)
def test_no_entry_of_a_table_lies_near_a_tie(
    x_scale: float, y_scale: float, zero_points: tuple[int, int], slope: float | None
) -> None:
    function: Function = "sigmoid" if slope is None else "leaky relu"
    x, y = Grid(x_scale, zero_points[0], 0, 255), Grid(y_scale, zero_points[1], 0, 255)
    table = FrozenTable(function, x, y, slope or 0.0)
    scales = float(table.x_scale), float(table.y_scale)
    found = tabulated(function, (scales[0], zero_points[0]), (scales[1], zero_points[1]), float(table.slope))
    assert found.risk() < 1
    assert scales[0] / x_scale == pytest.approx(1, abs=0.06)


def test_the_value_of_zero_is_moved_off_a_tie() -> None:
    """sigmoid(0) is 127.5 steps of 1/255, whatever the scale of the input."""
    table = FrozenTable("sigmoid", Grid(0.05, 128, 0, 255), Grid(1 / 255, 0, 0, 255))
    assert tabulated("sigmoid", (0.05, 128), (1 / 255, 0)).risk() > 1
    assert float(table.y_scale) > 1 / 255
