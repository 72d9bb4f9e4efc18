from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qil_deploy.errors import DataError
from qil_deploy.metrics import MeanIoU

Labels = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def scores_of(classes: Labels, count: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """Return a map whose largest channel is the given one."""
    return {"map": np.moveaxis(np.eye(count, dtype=np.float32)[classes], -1, 1)}


def measured(predicted: Labels, labels: Labels, count: int, parts: int = 1) -> MeanIoU:
    metric = MeanIoU("map")
    for some in np.array_split(np.arange(len(labels)), parts):
        metric.add(scores_of(predicted[some], count), labels[some])
    return metric


def test_a_case_by_hand() -> None:
    labels = np.array([[[0, 0, 1], [1, 2, 255]]])
    predicted = np.array([[[0, 1, 1], [1, 1, 3]]])
    metric = measured(predicted, labels, 5)
    # Class 0: 1 of 2; class 1: 2 of 4; class 2: 0 of 1; 3 stands where no label is, 4 nowhere.
    np.testing.assert_array_equal(metric.per_class(), [0.5, 0.5, 0.0, np.nan, np.nan])
    assert metric.value() == pytest.approx(1 / 3, rel=1e-15)


def test_without_labels_there_is_nothing_to_be_good_at() -> None:
    assert measured(np.zeros((2, 3, 3), np.int64), np.full((2, 3, 3), 255), 4).value() == 0.0


PIXELS = arrays.arrays(np.int64, (6, 4, 5), elements=st.integers(0, 3))


@given(PIXELS, PIXELS, st.integers(1, 6))
def test_it_is_what_sets_of_pixels_say_however_they_are_batched(predicted: Labels, labels: Labels, parts: int) -> None:
    found = []
    for cls in range(4):
        both, either = ((predicted == cls) & (labels == cls)).sum(), ((predicted == cls) | (labels == cls)).sum()
        if either:
            found.append(both / either)
    assert measured(predicted, labels, 4, parts).value() == pytest.approx(np.mean(found), rel=1e-12)


@given(PIXELS)
def test_what_is_right_is_one(labels: Labels) -> None:
    assert measured(labels, labels, 4).value() == 1.0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((1, 2, 4), np.int64), r"labels are int64 of shape \[1, 2, 4\]; integers of shape \[1, 2, 3\] belong"),
        (np.zeros((1, 2, 3)), r"labels are float64 of shape"),
        (np.full((1, 2, 3), 5), r"labels run from 5 to 5, but there are 5 classes: 0..4 are allowed, and 255 for"),
        (np.full((1, 2, 3), -1), r"labels run from -1 to -1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: Labels, message: str) -> None:
    with pytest.raises(DataError, match=message):
        MeanIoU("map").add(scores_of(np.zeros((1, 2, 3), np.int64), 5), labels)
