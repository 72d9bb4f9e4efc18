"""The other integer operators: fully connected layers, rescales, windows, and operators that only move codes."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto

from qil_deploy.integers import tabulated

if TYPE_CHECKING:
    from tests.reference.conftest import Comparison, Graph

Array = NDArray[Any]

MICROSOFT = "com.microsoft"
ODD = 4095  # exported ratios are p/q with one odd q of at most 4095: no result is a tie
ALL_PAIRS = np.stack(np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8)))[:, None, None]


def random_codes(rng: np.random.Generator, *shape: int) -> Array:
    return rng.integers(0, 255, shape, np.uint8, endpoint=True)


@pytest.mark.parametrize(
    ("transposed", "requantized", "bias", "per_channel", "zero_point"),
    [
        *itertools.product(*[[True, False]] * 4, [0]),
        (True, True, True, True, 31),
        (True, False, True, True, 200),
    ],
)
def test_qgemm(
    comparison: Comparison,
    graph: Graph,
    rng: np.random.Generator,
    transposed: bool,
    requantized: bool,
    bias: bool,
    per_channel: bool,
    zero_point: int,
) -> None:
    images = random_codes(rng, 5, 40)
    codes = rng.integers(-63, 63, (10, 40), np.int8, endpoint=True)
    scales = np.asarray(rng.uniform(0.01, 0.02, 10 if per_channel else ()), np.float32)
    operands = [
        *graph.weights(codes if transposed else codes.T.copy(), scales),
        graph.constant(rng.integers(-9999, 9999, 10, np.int32)) if bias else "",
        *(graph.grid(6, 120) if requantized else ()),
    ]
    grid = graph.grid(0.7, zero_point)
    graph.node("QGemm", "images", *grid, *operands, domain=MICROSOFT, transB=int(transposed))
    comparison.check(graph, images, dtype=np.uint8 if requantized else np.float32)


def add_constant(graph: Graph, ratios: tuple[int, int, int], zero_points: tuple[int, int, int], b: Array) -> None:
    """Add a constant to the images, with scales p_a / q and p_b / q of the result's."""
    p_a, p_b, q = ratios
    grids = [graph.grid(0.02 * p / q, zero_point) for p, zero_point in zip((p_a, p_b, q), zero_points, strict=True)]
    graph.node("QLinearAdd", "images", *grids[0], graph.constant(b), *grids[1], *grids[2], domain=MICROSOFT)


@pytest.mark.parametrize(
    "ratios", [(31, 57, 101), (2047, 2048, ODD), (4094, 1, ODD), (3000, 4000, ODD), (333, 100, 999)]
)
def test_qlinear_add_of_all_pairs(comparison: Comparison, graph: Graph, ratios: tuple[int, int, int]) -> None:
    add_constant(graph, ratios, (7, 128, 3), ALL_PAIRS[1])
    comparison.check(graph, ALL_PAIRS[0])


@given(
    ratios=st.integers(50, 2047).flatmap(
        lambda half: st.tuples(st.integers(1, 2 * half), st.integers(1, 2 * half), st.just(2 * half + 1))
    ),
    zero_points=st.tuples(*[st.integers(0, 255)] * 3),
)
def test_qlinear_add_of_any_ratio_without_ties(
    comparison: Comparison, ratios: tuple[int, int, int], zero_points: tuple[int, int, int]
) -> None:
    graph = comparison.new_graph()
    add_constant(graph, ratios, zero_points, ALL_PAIRS[1])
    comparison.check(graph, ALL_PAIRS[0], varied=False)


@pytest.mark.parametrize("shape", [(), (1,), (1, 3, 1, 1), (3, 1, 1), (2, 3, 4, 5), (1, 1, 4, 5)])
def test_qlinear_add_broadcasts_a_constant(
    comparison: Comparison, graph: Graph, rng: np.random.Generator, shape: tuple[int, ...]
) -> None:
    add_constant(graph, (1500, 2000, ODD), (0, 10, 0), np.asarray(random_codes(rng, *shape)))
    comparison.check(graph, random_codes(rng, 2, 3, 4, 5))


@pytest.mark.parametrize("size", [(7, 7), (8, 8), (1, 1), (3, 5)])
@pytest.mark.parametrize("zero_points", [(0, 0), (12, 100)])
def test_qlinear_global_average_pool(
    comparison: Comparison,
    graph: Graph,
    rng: np.random.Generator,
    size: tuple[int, int],
    zero_points: tuple[int, int],
) -> None:
    # The number of positions cancels out of the ratio, which is then 6001 / 4095 per mean.
    scale = 0.02 * size[0] * size[1] * max(1, 6001 // (size[0] * size[1])) / ODD
    grids = graph.grid(scale, zero_points[0]), graph.grid(0.02, zero_points[1])
    graph.node("QLinearGlobalAveragePool", "images", *grids[0], *grids[1], domain=MICROSOFT, channels_last=0)
    comparison.check(graph, random_codes(rng, 6, 40, *size))


@pytest.mark.parametrize("include_pads", [0, 1])
@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize(
    ("kernel", "strides", "pads"),
    [
        ((2, 2), (2, 2), (0, 0, 0, 0)),
        ((3, 3), (2, 2), (1, 1, 1, 1)),
        ((3, 2), (1, 3), (1, 0, 0, 1)),
        ((3, 3), (1, 1), (1, 1, 1, 1)),
    ],
)
def test_qlinear_average_pool(
    comparison: Comparison,
    graph: Graph,
    rng: np.random.Generator,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
    ceil_mode: int,
    include_pads: int,
) -> None:
    grids = graph.grid(0.02 * 36 * 61 / ODD, 9), graph.grid(0.02, 4)  # every window's size divides 36
    graph.node(
        "QLinearAveragePool",
        "images",
        *grids[0],
        *grids[1],
        domain=MICROSOFT,
        kernel_shape=kernel,
        strides=strides,
        pads=pads,
        ceil_mode=ceil_mode,
        count_include_pad=include_pads,
    )
    comparison.check(graph, random_codes(rng, 3, 4, 8, 9))


@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize(
    ("kernel", "strides", "pads", "dilations"),
    [
        ((3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
        ((2, 2), (2, 2), (0, 0, 0, 0), (1, 1)),
        ((3, 2), (1, 3), (0, 1, 2, 0), (1, 1)),
        ((2, 2), (1, 2), (0, 0, 0, 0), (2, 3)),
    ],
)
def test_max_pool(
    comparison: Comparison,
    graph: Graph,
    rng: np.random.Generator,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
    dilations: tuple[int, int],
    ceil_mode: int,
) -> None:
    graph.node(
        "MaxPool",
        "images",
        kernel_shape=kernel,
        strides=strides,
        pads=pads,
        dilations=dilations,
        ceil_mode=ceil_mode,
    )
    comparison.check(graph, random_codes(rng, 2, 3, 8, 9))


def test_operators_that_move_codes(comparison: Comparison, graph: Graph, rng: np.random.Generator) -> None:
    pads, axes = graph.constant(np.array([1, 2, 0, 2])), graph.constant(np.array([2, 3]))
    padded = graph.node("Pad", "images", pads, graph.constant(np.uint8(77)), axes)
    blocks = graph.node("Reshape", padded, graph.constant(np.array([0, 3, 4, 2, 10])))
    blocks = graph.node("Transpose", blocks, perm=[0, 3, 1, 2, 4])
    blocks = graph.node("Reshape", blocks, graph.constant(np.array([0, 6, 4, 10])))
    clipped = graph.node("Clip", blocks, graph.constant(np.uint8(20)), graph.constant(np.uint8(200)))
    joined = graph.node("Concat", blocks, clipped, graph.node("Identity", clipped), axis=1)
    shaped = graph.node("Reshape", joined, graph.constant(np.array([0, 4, -1])))
    graph.node("Flatten", shaped, axis=2)
    assert comparison.check(graph, random_codes(rng, 2, 3, 7, 6)).shape == (8, 180)


def test_transpose_without_an_order_reverses_the_axes(
    comparison: Comparison, graph: Graph, rng: np.random.Generator
) -> None:
    graph.node("Transpose", "images")
    comparison.check(graph, random_codes(rng, 2, 3, 4, 5))


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul"])
def test_int32_arithmetic(comparison: Comparison, graph: Graph, rng: np.random.Generator, op_type: str) -> None:
    integers = graph.node("Cast", "images", to=TensorProto.INT32)
    graph.node(op_type, integers, graph.constant(rng.integers(-9999, 9999, 7, np.int32)))
    comparison.check(graph, random_codes(rng, 4, 7), dtype=np.int32)


@pytest.mark.parametrize("keepdims", [0, 1])
def test_sums_over_positions(comparison: Comparison, graph: Graph, rng: np.random.Generator, keepdims: int) -> None:
    integers = graph.node("Cast", "images", to=TensorProto.INT32)
    total = graph.node("ReduceSum", integers, graph.constant(np.array([2, 3])), keepdims=keepdims)
    real = graph.node("Cast", total, to=TensorProto.FLOAT)
    graph.node("Mul", real, graph.constant(np.float32(0.0173)))
    comparison.check(graph, random_codes(rng, 4, 7, 5, 6), dtype=np.float32)


def test_resize_repeats_pixels(comparison: Comparison, graph: Graph, rng: np.random.Generator) -> None:
    factors = graph.constant(np.array([1, 1, 2, 3], np.float32))
    modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    graph.node("Resize", "images", "", factors, **modes)
    assert comparison.check(graph, random_codes(rng, 2, 3, 4, 5)).shape == (2, 3, 8, 15)


def test_expand_repeats_along_axes(comparison: Comparison, graph: Graph, rng: np.random.Generator) -> None:
    repeated = graph.node("Expand", graph.constant(np.array([3, 5], np.int32)), graph.constant(np.array([4, 2])))
    graph.node("Add", graph.node("Cast", "images", to=TensorProto.INT32), repeated)
    comparison.check(graph, random_codes(rng, 4, 2), dtype=np.int32)


def test_pad_without_value_and_axes_pads_zeros_everywhere(
    comparison: Comparison, graph: Graph, rng: np.random.Generator
) -> None:
    graph.node("Pad", "images", graph.constant(np.array([0, 1, 2, 0, 0, 0, 0, 3])))
    comparison.check(graph, random_codes(rng, 2, 3, 4, 5))


@pytest.mark.parametrize(("low", "high"), [(3, 15), (3, None), (None, 15)])
def test_clip(comparison: Comparison, graph: Graph, low: int | None, high: int | None) -> None:
    codes = np.arange(256, dtype=np.uint8)[None]
    graph.node("Clip", "images", *("" if limit is None else graph.constant(np.uint8(limit)) for limit in (low, high)))
    expected = codes.clip(0 if low is None else low, 255 if high is None else high)
    np.testing.assert_array_equal(comparison.check(graph, codes), expected, strict=True)


def test_quantize_rounds_half_to_even_and_saturates(
    comparison: Comparison, graph: Graph, rng: np.random.Generator
) -> None:
    halves, others = np.arange(-400, 400) / 2, rng.normal(0, 99, 2000)
    graph.quantize("images", 1, 114)
    comparison.check(graph, np.concatenate([halves, others, [1e9, -1e9]])[None].astype(np.float32))


def test_quantize_divides_by_the_scale(comparison: Comparison, graph: Graph, rng: np.random.Generator) -> None:
    graph.quantize("images", 0.0137, 114)
    comparison.check(graph, rng.normal(0, 2, (50, 999)).astype(np.float32))


def test_dequantize(comparison: Comparison, graph: Graph) -> None:
    graph.dequantize("images", 0.0137, 114)
    comparison.check(graph, np.arange(256, dtype=np.uint8)[None], dtype=np.float32)


def test_quantize_and_dequantize_per_channel(comparison: Comparison, graph: Graph, rng: np.random.Generator) -> None:
    scales = graph.constant(np.array([0.01, 0.02, 0.03], np.float32))
    zero_points = graph.constant(np.array([1, 128, 200], np.uint8))
    codes = graph.node("QuantizeLinear", "images", scales, zero_points)
    graph.node("DequantizeLinear", codes, scales, zero_points)
    comparison.check(graph, rng.normal(0, 2, (4, 3, 5)).astype(np.float32), dtype=np.float32, levels=("disabled",))


def multiply_by_constant(
    graph: Graph, scales: tuple[float, float, float], zero_points: tuple[int, int, int], b: Array
) -> None:
    grids = [graph.grid(scale, zero_point) for scale, zero_point in zip(scales, zero_points, strict=True)]
    graph.node("QLinearMul", "images", *grids[0], graph.constant(b), *grids[1], *grids[2], domain=MICROSOFT)


@pytest.mark.parametrize("zero_points", [(0, 0, 0), (128, 0, 128), (128, 128, 77), (3, 200, 255)])
@pytest.mark.parametrize(
    "scales",
    [(0.02, 1 / 255, 0.02), (0.5, 1, 1), (0.5, 0.25, 16), (1, 1, 64), (0.013, 0.0077, 0.03), (16 / ODD, 1, 1)],
)
def test_qlinear_mul_of_all_pairs(
    comparison: Comparison, graph: Graph, scales: tuple[float, float, float], zero_points: tuple[int, int, int]
) -> None:
    """Ties, too: ratios of 1/2, 1/64 and 1/128 have thousands."""
    multiply_by_constant(graph, scales, zero_points, ALL_PAIRS[1])
    comparison.check(graph, ALL_PAIRS[0])


@pytest.mark.parametrize("shape", [(), (1, 3, 1, 1), (2, 3, 1, 1), (2, 1, 4, 5), (2, 3, 4, 5)])
def test_qlinear_mul_broadcasts(
    comparison: Comparison, graph: Graph, rng: np.random.Generator, shape: tuple[int, ...]
) -> None:
    multiply_by_constant(graph, (0.02, 1 / 255, 0.02), (128, 0, 128), np.asarray(random_codes(rng, *shape)))
    comparison.check(graph, random_codes(rng, 2, 3, 4, 5))


EVERY_CODE = np.arange(256, dtype=np.uint8)[None]


@pytest.mark.parametrize("zero_point", [0, 128, 255])
@pytest.mark.parametrize("x_scale", [0.003, 0.0171, 0.05, 0.3, 1.7])
@pytest.mark.parametrize("y_scale", [1 / 256, 1 / 254, 0.0017])
def test_qlinear_sigmoid_of_every_code(
    comparison: Comparison, graph: Graph, x_scale: float, y_scale: float, zero_point: int
) -> None:
    """Only if no entry lies near a tie, as in exported tables."""
    while tabulated("sigmoid", (float(np.float32(x_scale)), zero_point), (float(np.float32(y_scale)), 0)).risk() >= 1:
        x_scale, y_scale = x_scale * (1 - 2**-11), y_scale * (1 + 2**-11)
    grids = graph.grid(x_scale, zero_point), graph.grid(y_scale, 0)
    graph.node("QLinearSigmoid", "images", *grids[0], *grids[1], domain=MICROSOFT)
    comparison.check(graph, EVERY_CODE, varied=False)


@pytest.mark.parametrize("slope", [0.01, 0.13, 0.25, -0.3])
def test_qlinear_leaky_relu_of_every_code(comparison: Comparison, graph: Graph, slope: float) -> None:
    grids = graph.grid(0.031, 128), graph.grid(0.0287, 128)
    graph.node("QLinearLeakyRelu", "images", *grids[0], *grids[1], domain=MICROSOFT, alpha=slope)
    comparison.check(graph, EVERY_CODE)
