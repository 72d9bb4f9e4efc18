"""Comparison of two tensors: every number counts, whatever the batches."""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from qil_deploy.runtime_tests.compare_tensors import compare_tensors, digest_bytes


def floats(values: list[float]) -> NDArray[np.float32]:
    """A tensor of one image."""
    return np.array([values], np.float32)


@given(
    hnp.arrays(np.int8, (6, 3), elements=st.integers(-2, 2)),
    hnp.arrays(np.int8, (6, 3), elements=st.integers(-2, 2)),
    st.integers(1, 6),
)
def test_counts_of_batches_add_up_to_those_of_the_whole(
    found: NDArray[np.int8],
    expected: NDArray[np.int8],
    batch: int,
) -> None:
    whole = compare_tensors(found, expected, range(6))
    parts = [
        compare_tensors(found[start : start + batch], expected[start : start + batch], range(start, 6)[:batch])
        for start in range(0, 6, batch)
    ]
    assert reduce(add, parts) == whole
    wrong = np.argwhere(found != expected).tolist()
    assert (whole.elements, whole.differing) == (18, len(wrong))
    assert whole.indices == tuple(map(tuple, wrong[:5]))
    assert whole.largest_step == np.abs(found.astype(int) - expected).max()


def test_images_have_the_names_that_they_are_given() -> None:
    found = compare_tensors(np.array([[1], [2]]), np.array([[1], [5]]), [70, 90])
    assert (found.differing, found.indices, found.largest_step, found.measured) == (1, ((90, 0),), 3.0, True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_differs_and_has_no_step(value: float) -> None:
    found = compare_tensors(floats([value, 1, 2]), floats([0, 1, 4]), [0])
    assert (found.differing, found.largest_step, found.measured) == (2, 2.0, False)
    assert compare_tensors(floats([np.nan]), floats([np.nan]), [0]).differing == 1


def test_another_shape_or_type_differs_everywhere_even_from_nothing() -> None:
    five = np.zeros((5, 1), np.int8)
    for found, expected, elements in (
        (five.astype(np.uint8), five, 5),
        (five.reshape(1, 5), five, 5),
        (five, np.zeros((5, 0), np.int8), 1),
    ):
        difference = compare_tensors(found, expected, range(5))
        assert (difference.elements, difference.differing, difference.indices) == (elements, elements, ())
        assert not difference.measured


def test_digests_take_minus_zero_for_zero_and_order_for_nothing() -> None:
    tensor = np.array([[0.0, 1.0], [2.0, 3.0]], np.float32)
    assert digest_bytes(-np.zeros((2, 2), np.float32)) == digest_bytes(np.zeros((2, 2), np.float32))
    assert digest_bytes(np.asfortranarray(tensor)) == digest_bytes(tensor) == tensor.tobytes()
