"""Rescale ratios: float32 cannot reach a tie, whatever the order of its operations, and ONNX Runtime agrees."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from qil_deploy.integers.bounds import rounding_error_bound
from qil_deploy.integers.ratios import (
    MAX_DENOMINATOR,
    choose_denominator,
    nearest_numerator,
    pool_ratio,
    shrink_factor,
)

CODES = np.arange(256, dtype=np.int64)


@given(terms=st.lists(st.floats(0, 1e5), min_size=1, max_size=4))
def test_denominators_are_odd_and_keep_the_next_tie_out_of_reach(terms: list[float]) -> None:
    q = choose_denominator(terms)
    assert q % 2 == 1
    assert 1 <= q <= MAX_DENOMINATOR
    assert 1 / (2 * q) > rounding_error_bound(terms)


def test_ordinary_terms_take_the_largest_denominator_and_none_at_all_too() -> None:
    assert choose_denominator([255.0]) == MAX_DENOMINATOR
    assert choose_denominator([0.0]) == MAX_DENOMINATOR


def test_terms_that_cannot_be_rescaled_exactly_are_refused() -> None:
    with pytest.raises(ValueError, match="are too large to be rescaled exactly"):
        choose_denominator([1e8])


@given(ratio=st.floats(1e-6, 1e9), threshold=st.floats(-400, 400))
def test_extreme_ratios_shrink_to_what_float32_rounds_and_saturate_as_before(ratio: float, threshold: float) -> None:
    terms = np.array([255 * ratio, threshold * ratio])
    factor = shrink_factor(list(terms))
    q = choose_denominator(list(factor * terms))
    assert (factor == 1.0) == (np.abs(terms).sum() <= 2**19)
    if factor < 1:
        p, k = nearest_numerator(factor * ratio, q), round(factor * threshold * ratio * q)
        found = np.clip(np.rint((CODES * p - k) / q), 0, 255)
        expected = np.clip(np.rint((CODES - threshold) * ratio), 0, 255)
        # One step of the input is more than the whole output: at most the code next to the threshold can differ.
        assert np.count_nonzero(found != expected) <= 1


@given(ratio=st.floats(1e-6, 1e12), zero_point=st.integers(0, 255))
def test_pools_saturate_as_with_the_ratio_that_a_runtime_does_not_take(ratio: float, zero_point: int) -> None:
    bounded = pool_ratio(ratio)
    assert bounded < 256
    assert bounded == ratio or ratio >= 255
    sums = np.arange(-70_000, 70_000)
    codes = [np.clip(np.rint(sums * factor) + zero_point, 0, 255) for factor in (bounded, ratio)]
    np.testing.assert_array_equal(*codes)


@given(ratio=st.floats(1e-9, 1e3), half=st.integers(0, 2047))
def test_nearest_numerator(ratio: float, half: int) -> None:
    q = 2 * half + 1
    p = nearest_numerator(ratio, q)
    assert p >= 1
    if p > 1:
        assert abs(p / q - ratio) <= 0.5 / q * (1 + 1e-12)


Ratios = st.floats(0.01, 4.0)


def chosen(ratio_a: float, ratio_b: float, zero_a: int, zero_b: int, zero_y: int) -> tuple[int, int, int]:
    q = choose_denominator([(255 + zero_a) * ratio_a, (255 + zero_b) * ratio_b, zero_y])
    return nearest_numerator(ratio_a, q), nearest_numerator(ratio_b, q), q


ZeroPoints = st.sampled_from([0, 128])


@given(ratio_a=Ratios, ratio_b=Ratios, zero_a=ZeroPoints, zero_b=ZeroPoints, zero_y=ZeroPoints)
def test_float32_adds_as_integers_do_in_any_order(
    ratio_a: float, ratio_b: float, zero_a: int, zero_b: int, zero_y: int
) -> None:
    p_a, p_b, q = chosen(ratio_a, ratio_b, zero_a, zero_b, zero_y)
    total = (CODES[:, None] - zero_a) * p_a + (CODES - zero_b) * p_b
    expected = np.clip(np.rint(total / q) + zero_y, 0, 255)
    assert (2 * total % q != 0)[total % q != 0].all()
    y_scale = np.float32(0.0137)
    r_a, r_b = (np.float32(np.float32(p * float(y_scale) / q) / y_scale) for p in (p_a, p_b))
    a, b = CODES.astype(np.float32)[:, None], CODES.astype(np.float32)
    constant = np.float32(zero_y) - (r_a * np.float32(zero_a) + r_b * np.float32(zero_b))
    for found in (
        a * r_a + (b * r_b + constant),
        (a * r_a + b * r_b) + constant,
        (a - np.float32(zero_a)) * r_a + (b - np.float32(zero_b)) * r_b + np.float32(zero_y),
        (a.astype(float) * r_a + (b * r_b + constant)).astype(np.float32),  # fused multiply-add
    ):
        np.testing.assert_array_equal(np.clip(np.rint(found), 0, 255), expected)


@given(ratio_a=Ratios, ratio_b=Ratios, zero_a=ZeroPoints, zero_b=ZeroPoints, zero_y=ZeroPoints)
def test_qlinear_add_computes_the_ratio_for_every_pair_of_codes(
    ratio_a: float, ratio_b: float, zero_a: int, zero_b: int, zero_y: int
) -> None:
    p_a, p_b, q = chosen(ratio_a, ratio_b, zero_a, zero_b, zero_y)
    y_scale = np.float32(0.0137)
    assume(p_a > 1 and p_b > 1)
    grids: dict[str, np.generic] = {}
    for name, p, zero_point in (("a", p_a, zero_a), ("b", p_b, zero_b), ("c", q, zero_y)):
        grids[f"{name}_scale"] = np.float32(float(y_scale) * p / q)
        grids[f"{name}_zero_point"] = np.uint8(zero_point)
    names = list(grids)
    inputs = ["a", *names[:2], "b", *names[2:]]
    graph = helper.make_graph(
        [helper.make_node("QLinearAdd", inputs, ["c"], domain="com.microsoft")],
        "add",
        [helper.make_tensor_value_info(name, TensorProto.UINT8, [65536]) for name in ("a", "b")],
        [helper.make_tensor_value_info("c", TensorProto.UINT8, [65536])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in grids.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    a, b = (codes.ravel() for codes in np.meshgrid(CODES, CODES))
    (found,) = session.run(None, {"a": a.astype(np.uint8), "b": b.astype(np.uint8)})
    expected = np.clip(np.rint(((a - zero_a) * p_a + (b - zero_b) * p_b) / q) + zero_y, 0, 255)
    np.testing.assert_array_equal(found, expected)
