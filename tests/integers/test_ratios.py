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
    nearest_fraction,
    nearest_numerator,
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


@given(ratio=st.floats(1 / 3200, 1e12), zero_point=st.sampled_from([0, 128]))
def test_pools_have_a_ratio_that_a_runtime_takes_near_the_one_that_is_wanted(ratio: float, zero_point: int) -> None:
    p, q = nearest_fraction(ratio, 255 * 12544, zero_point)
    assert q % 2 == 1
    assert 1 / (2 * q) > rounding_error_bound([min(255 * 12544 * ratio, 257), zero_point])
    if ratio < 255:
        np.testing.assert_allclose(p / q, ratio, rtol=1e-3)
    else:
        assert p / q == 255
        sums = np.arange(-70_000, 70_000)
        codes = [np.clip(np.rint(sums * factor) + zero_point, 0, 255) for factor in (255.0, ratio)]
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


@pytest.mark.parametrize("fraction", [(1, 3267), (3, 2723), (1, 919), (57, 2639)])
@pytest.mark.parametrize("zero_x", [0, 128])
@pytest.mark.parametrize("zero_y", [0, 128])
def test_large_maps_are_averaged_as_integers_are_where_a_tie_is_nearest(
    fraction: tuple[int, int], zero_x: int, zero_y: int, rng: np.random.Generator
) -> None:
    (p, q), side, channels = fraction, 112, 256
    window = side * side
    y_scale = np.float32(0.0137)
    grids = {
        "x_scale": np.float32(float(y_scale) * window * p / q),
        "x_zero_point": np.uint8(zero_x),
        "y_scale": y_scale,
        "y_zero_point": np.uint8(zero_y),
    }
    half_codes = rng.integers(-zero_y, 255 - zero_y, channels) + 0.5
    sums = np.clip(np.rint(half_codes * q / p).astype(np.int64), -zero_x * window, (255 - zero_x) * window)
    means, rest = np.divmod(sums, window)
    codes = means[:, None] + zero_x + (np.arange(window) < rest[:, None])
    graph = helper.make_graph(
        [helper.make_node("QLinearGlobalAveragePool", ["x", *grids], ["y"], domain="com.microsoft", channels_last=0)],
        "mean",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, channels, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [1, channels, 1, 1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in grids.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": codes.astype(np.uint8).reshape(1, channels, side, side)})
    np.testing.assert_array_equal(found.ravel(), np.clip(np.rint(sums * p / q) + zero_y, 0, 255))
