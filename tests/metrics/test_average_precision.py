from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qil_deploy.errors import DataError
from qil_deploy.metrics import AveragePrecision, BoxDecoder, Detections, pad_boxes

DECODER = BoxDecoder(outputs=("map",), strides=(8,), classes=2)


def detections(*rows: tuple[float, ...]) -> Detections:
    """Return detections of rows (left, top, right, bottom, class, score), the best first."""
    values = np.array(rows, np.float64).reshape(-1, 6)
    return Detections(boxes=values[:, :4], classes=values[:, 4].astype(np.int64), scores=values[:, 5])


def measured(*images: tuple[Detections, Sequence[tuple[float, ...]]]) -> AveragePrecision:
    metric = AveragePrecision(DECODER)
    for found, truth in images:
        metric.add_image(found, np.array(truth, np.float64).reshape(-1, 5))
    return metric


def test_a_case_by_hand() -> None:
    truth = [(0, 0, 10, 10, 0), (20, 20, 30, 30, 0), (0, 0, 10, 10, 1)]
    found = detections(
        (0, 0, 10, 10, 0, 0.9),  # right
        (0, 0, 10, 9, 0, 0.8),  # its box is taken
        (20, 20, 30, 29, 0, 0.7),  # right: precision 2/3 at recall 1
        (0, 0, 10, 4.9, 1, 0.6),  # overlaps by less than one half
    )
    assert measured((found, truth)).per_class().tolist() == pytest.approx([1 / 2 + 2 / 3 / 2, 0])


def test_precision_is_the_highest_at_that_recall_or_beyond() -> None:
    truth = [(0, 0, 10, 10, 0), (20, 20, 30, 30, 0)]
    found = detections((50, 50, 60, 60, 0, 0.9), (0, 0, 10, 10, 0, 0.8), (20, 20, 30, 30, 0, 0.7))
    assert measured((found, truth)).per_class()[0] == pytest.approx(2 / 3)  # not the mean of 1/2 and 2/3


def test_a_box_is_found_in_its_own_image_alone() -> None:
    box, nothing = (0, 0, 10, 10, 0), detections()
    assert measured((nothing, [box]), (detections((*box, 0.9)), [])).value() == 0.0
    assert measured((detections((*box, 0.9)), [box]), (nothing, [])).value() == 1.0


def test_classes_without_boxes_count_nowhere() -> None:
    metric = measured((detections((0, 0, 9, 9, 1, 0.9)), []))
    assert np.isnan(metric.per_class()).all()
    assert metric.value() == 0.0


BOX = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 1)).map(
    lambda box: (20.0 * box[0], 20.0 * box[1], 20.0 * box[0] + 10, 20.0 * box[1] + 10, float(box[2]))
)


@given(st.lists(st.lists(BOX, unique=True), min_size=1, max_size=4), st.integers(0, 100))
def test_boxes_that_are_all_found_are_one_whatever_their_scores(images: list[list[Any]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = []
    for boxes in images:
        rows = [(*box, score) for box, score in zip(boxes, rng.random(len(boxes)), strict=True)]
        pairs.append((detections(*sorted(rows, key=lambda row: -row[5])), boxes))
    assert measured(*pairs).value() == (1.0 if any(images) else 0.0)


@given(st.lists(BOX, min_size=1, unique=True), st.floats(0, 1))
def test_more_that_is_wrong_is_never_better(boxes: list[Any], score: float) -> None:
    right = [(*box, 0.5) for box in boxes]
    wrong = (500.0, 500.0, 510.0, 510.0, 0.0, score)
    rows = sorted([*right, wrong], key=lambda row: -row[5])
    assert measured((detections(*rows), boxes)).value() <= measured((detections(*right), boxes)).value() == 1.0


def test_batches_of_outputs_and_labels() -> None:
    maps = np.full((3, 6, 2, 2), -20.0, np.float32)
    maps[:, :4], maps[0, 4, 0, 0], maps[2, 5, 1, 1] = np.log(0.5), 2.0, 2.0
    labels = pad_boxes([np.array([[0, 0, 8, 8, 0]]), np.zeros((0, 5)), np.array([[8, 8, 16, 16, 1], [0, 0, 8, 8, 1]])])
    assert labels.shape == (3, 2, 5)
    metric = AveragePrecision(DECODER)
    metric.add({"map": maps[:2]}, labels[:2])
    metric.add({"map": maps[2:]}, labels[2:])
    np.testing.assert_allclose(metric.per_class(), [1, 0.5])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((1, 3)), r"labels are float64 of shape \[1, 3\]; boxes are numbers \[N, most, 5\]"),
        (np.full((1, 1, 5), 2.0), "labels have the class 2, but there are 2 classes"),
    ],
)
def test_labels_that_are_no_boxes_are_refused(labels: Any, message: str) -> None:  # noqa: ANN401 - an array
    with pytest.raises(DataError, match=message):
        AveragePrecision(DECODER).add({"map": np.zeros((1, 6, 2, 2), np.float32)}, labels)
