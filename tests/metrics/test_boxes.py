from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qil_deploy.errors import ConfigError
from qil_deploy.metrics import BoxDecoder, box_ious, decoder_in_metadata, decoder_of_metadata, suppress

LOW = -20.0


def test_distances_from_the_middle_of_a_cell() -> None:
    maps = np.full((2, 6, 3, 4), LOW)
    maps[1, :4, 2, 1] = np.log([1.0, 2.0, 0.5, 0.25])
    maps[1, 5, 2, 1] = 3.0
    decoder = BoxDecoder(outputs=("map",), strides=(8,), classes=2)
    nothing, found = decoder.decode({"map": maps})
    assert len(nothing) == 0
    np.testing.assert_allclose(found.boxes, [[12 - 8, 20 - 16, 12 + 4, 20 + 2]], rtol=1e-12)
    np.testing.assert_allclose(found.scores, [1 / (1 + np.exp(-3.0))], rtol=1e-12)
    assert found.classes.tolist() == [1]


def test_anchors_are_shifted_and_scaled() -> None:
    maps = np.zeros((1, 2, 6, 2, 2))
    maps[:, :, 4] = LOW
    maps[0, 1, :, 0, 1] = [0.0, np.log(3.0), 0.0, np.log(3.0), 2.0, 1.0]
    decoder = BoxDecoder(outputs=("map",), strides=(4,), classes=1, anchors=(((1, 1), (10, 6)),))
    (found,) = decoder.decode({"map": maps.reshape(1, 12, 2, 2)})
    # Column 1 and row 0: middle (1 + 1/2) * 4 and (0 + 1) * 4; size 10 * 1 and 6 * 1.5**2.
    np.testing.assert_allclose(found.boxes, [[6 - 5, 4 - 6.75, 6 + 5, 4 + 6.75]], rtol=1e-12)
    np.testing.assert_allclose(found.scores, [1 / (1 + np.exp(-2.0)) / (1 + np.exp(-1.0))], rtol=1e-12)


def test_boxes_of_all_outputs_are_compared_with_each_other() -> None:
    near, far = np.full((1, 6, 4, 4), LOW), np.full((1, 6, 2, 2), LOW)
    near[0, :4, 0, 0], near[0, 4, 0, 0] = np.log(0.5), 2.0  # 0..8 around 4
    far[0, :4, 0, 0], far[0, 4, 0, 0] = np.log([0.5, 0.5, 1e-9, 1e-9]), 1.0  # 0..8 from 8 to the left
    far[0, 5, 0, 0] = 0.5
    decoder = BoxDecoder(outputs=("near", "far"), strides=(8, 16), classes=2)
    (found,) = decoder.decode({"near": near, "far": far})
    assert found.classes.tolist() == [0, 1]  # of class 0 the better one
    np.testing.assert_allclose(found.boxes, [[0, 0, 8, 8]] * 2, atol=1e-6)


def test_numbers_without_end_make_no_box_without_end() -> None:
    maps = np.full((1, 5, 1, 1), 1e30, np.float32)
    (found,) = BoxDecoder(outputs=("map",), strides=(1,), classes=1).decode({"map": maps})
    assert np.isfinite(found.boxes).all()


BOXES = arrays.arrays(np.float64, (7, 4), elements=st.floats(0, 20)).map(
    lambda a: np.concatenate([a[:, :2], a[:, :2] + a[:, 2:]], axis=1)
)


@given(BOXES, BOXES)
def test_overlaps_are_symmetric_and_from_zero_to_one(a: Any, b: Any) -> None:  # noqa: ANN401 - arrays
    found = box_ious(a, b)
    np.testing.assert_allclose(found, box_ious(b, a).T, rtol=1e-12)
    assert ((found >= 0) & (found <= 1 + 1e-12)).all()
    areas = (a[:, 2:] - a[:, :2]).prod(axis=1)
    np.testing.assert_allclose(np.diag(box_ious(a, a))[areas > 1e-9], 1, rtol=1e-9)


def test_overlaps_by_hand() -> None:
    boxes = np.array([[0, 0, 4, 4], [2, 0, 6, 4], [4, 4, 5, 5], [3, 3, 3, 3]])
    np.testing.assert_allclose(box_ious(boxes[:1], boxes), [[1, 8 / 24, 0, 0]])


@given(BOXES, arrays.arrays(np.int64, 7, elements=st.integers(0, 1)), st.floats(0, 1))
def test_what_stays_overlaps_nothing_that_stays_and_what_goes_does(boxes: Any, classes: Any, limit: float) -> None:  # noqa: ANN401 - arrays
    kept = suppress(boxes, classes, limit)
    overlaps = (box_ious(boxes, boxes) > limit) & (classes[:, None] == classes)
    for index in range(len(boxes)):
        better = [other for other in kept if other < index and overlaps[other, index]]
        assert (index in kept) == (not better)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": (8, 16)}, r"strides are \(8, 16\); each of the outputs \('map',\) needs one"),
        ({"outputs": ()}, "needs one"),
        ({"strides": (0,)}, "needs one, from 1"),
        ({"classes": 0}, "classes is 0"),
        ({"anchors": (((1, 1),), ((2, 2),))}, "anchors are given for 2 outputs of 1"),
        ({"anchors": ((),)}, "give all or none"),
        ({"anchors": (((1, 0),),)}, "widths and heights are positive"),
        ({"score": 1.5}, "score is 1.5 and overlap 0.5; both are from 0 to 1"),
        ({"overlap": float("nan")}, "both are from 0 to 1"),
    ],
)
def test_decoders_that_do_not_go_together_are_refused(changes: dict[str, Any], message: str) -> None:
    make: Any = BoxDecoder
    with pytest.raises(ConfigError, match=message):
        make(**({"outputs": ("map",), "strides": (8,), "classes": 2} | changes))


def test_outputs_that_hold_no_such_boxes_are_refused() -> None:
    decoder = BoxDecoder(outputs=("map",), strides=(8,), classes=2)
    with pytest.raises(ConfigError, match="there is no output 'map', only other"):
        decoder.decode({"other": np.zeros((1, 6, 2, 2))})
    with pytest.raises(ConfigError, match=r"output 'map' is of shape \[1, 7, 2, 2\]; boxes of 2 classes need \[N, 6,"):
        decoder.decode({"map": np.zeros((1, 7, 2, 2))})


def test_metadata_give_the_decoder_back() -> None:
    for anchors in ((), (((1.5, 2.0), (3.0, 4.0)),)):
        decoder = BoxDecoder(outputs=("map",), strides=(8,), classes=2, anchors=anchors, score=0.25)
        assert decoder_of_metadata(decoder_in_metadata(decoder)) == decoder
    assert decoder_in_metadata(None) == {}
    assert decoder_of_metadata({}) is None
