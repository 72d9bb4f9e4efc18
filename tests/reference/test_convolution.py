"""QLinearConv: any geometry, packed weights, exact sums, rounding."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from qil_deploy.errors import ModelFileError
from qil_deploy.reference import IntegerReference
from qil_deploy.reference.products import exact_float

if TYPE_CHECKING:
    from tests.reference.conftest import Comparison, Graph

LARGEST_WEIGHT = 63  # 8-bit activations times larger ones saturate int16 on x86 without VNNI


@dataclass(frozen=True)
class Window:
    """Attributes of QLinearConv."""

    kernel_shape: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (1, 1, 1, 1)
    group: int = 1


@dataclass(frozen=True)
class Conv:
    """A convolution with all its variable parts."""

    window: Window = Window()
    image_shape: tuple[int, int, int] = (2, 9, 8)  # images, height, width
    inputs_per_group: int = 3
    outputs_per_group: int = 4
    x_zero_point: int = 0
    y_zero_point: int = 0
    per_channel: bool = True
    bias: bool = True
    seed: int = 0

    def add_to(self, graph: Graph) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """Append the convolution to a graph and return images for it."""
        rng = np.random.default_rng(self.seed)
        outputs = self.window.group * self.outputs_per_group
        shape = (outputs, self.inputs_per_group, *self.window.kernel_shape)
        codes = rng.integers(-LARGEST_WEIGHT, LARGEST_WEIGHT, shape, np.int8, endpoint=True)
        scales = rng.uniform(0.5, 2, outputs).astype(np.float32)
        bias = rng.integers(-9999, 9999, outputs, np.int32)
        y_scale = 37 * 148 * float(np.sqrt(codes[0].size)) / 50  # deviation of the sums over 50 codes
        graph.node(
            "QLinearConv",
            "images",
            *graph.grid(1, self.x_zero_point),
            *graph.weights(codes, scales if self.per_channel else np.float32(1)),
            *graph.grid(y_scale, self.y_zero_point),
            *([graph.constant(bias)] if self.bias else []),
            **asdict(self.window),
        )
        images, height, width = self.image_shape
        channels = self.window.group * self.inputs_per_group
        return rng.integers(0, 255, (images, channels, height, width), np.uint8, endpoint=True)


POINTWISE = (0, 0, 0, 0)


@pytest.mark.parametrize(
    "conv",
    [
        Conv(),
        Conv(Window((1, 1), pads=POINTWISE)),
        Conv(Window((1, 1), pads=POINTWISE, strides=(2, 2))),
        Conv(Window(strides=(2, 2)), x_zero_point=114, y_zero_point=128),
        Conv(x_zero_point=255, y_zero_point=200, per_channel=False, bias=False),
        Conv(Window((7, 7), strides=(2, 2), pads=(3, 3, 3, 3)), (2, 16, 16), x_zero_point=73),
        Conv(Window((2, 5), pads=(0, 2, 1, 3), dilations=(2, 1), strides=(1, 3))),
        Conv(Window(group=2), inputs_per_group=4),
        Conv(Window(group=3), outputs_per_group=1, inputs_per_group=5, x_zero_point=9),
        Conv(Window(group=16), inputs_per_group=1, outputs_per_group=1, x_zero_point=11, y_zero_point=7),
        Conv(Window(strides=(2, 1), group=8), inputs_per_group=1, outputs_per_group=2),
        Conv(image_shape=(70, 8, 8), inputs_per_group=16),
        Conv(image_shape=(2, 5, 5), inputs_per_group=64),
    ],
)
def test_convolution_equals_the_runtime(conv: Conv, comparison: Comparison, graph: Graph) -> None:
    images = conv.add_to(graph)
    comparison.check(graph, images)


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
zero_points = st.integers(0, 255)
windows = st.builds(
    Window,
    kernel_shape=pairs,
    strides=pairs,
    dilations=pairs,
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    group=st.integers(1, 4),
)
convolutions = st.builds(
    Conv,
    window=windows,
    image_shape=st.tuples(st.integers(1, 3), st.integers(7, 11), st.integers(7, 11)),
    inputs_per_group=st.integers(1, 4),
    outputs_per_group=st.integers(1, 4),
    x_zero_point=zero_points,
    y_zero_point=zero_points,
    per_channel=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)


@given(conv=convolutions)
def test_convolution_of_any_geometry_equals_the_runtime(conv: Conv, comparison: Comparison) -> None:
    graph = comparison.new_graph()
    images = conv.add_to(graph)
    comparison.check(graph, images, varied=False)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("factor", [None, "scalar", "per channel"])
def test_packed_weights_are_cast_and_spread(
    comparison: Comparison, graph: Graph, rng: np.random.Generator, bits: int, factor: str | None
) -> None:
    images = rng.integers(0, 16, (2, 3, 8, 8), np.uint8)
    largest = 2 ** (bits - 1) - 1
    codes = rng.integers(-largest, largest, (4, 3, 3, 3), endpoint=True)
    weights = graph.node("Cast", graph.packed(codes, bits), to=TensorProto.INT8)
    if factor:
        spread = rng.integers(1, 127 // largest, (4, 1, 1, 1), np.int8, endpoint=True)
        weights = graph.node("Mul", weights, graph.constant(spread if factor == "per channel" else np.int8(18)))
    operands = graph.weights(weights, rng.uniform(0.01, 0.02, 4).astype(np.float32))
    grids = graph.grid(1 / 15, 0), graph.grid(0.01, 100)
    graph.node("QLinearConv", "images", *grids[0], *operands, *grids[1], pads=[1] * 4)
    comparison.check(graph, images)
    reference = IntegerReference(comparison.read(graph.model(images)))
    assert [node.op_type for node in reference.nodes] == ["QLinearConv"]
    assert weights in reference.constants
    assert list(reference.run_all(images)) == [graph.nodes[-1].output[0]]


@pytest.mark.parametrize("magnitude", [10, 2**24, 2**31 - 2**22])
def test_large_biases_are_added_exactly(
    comparison: Comparison, graph: Graph, rng: np.random.Generator, magnitude: int
) -> None:
    images = rng.integers(0, 256, (2, 16, 5, 5), np.uint8)
    operands = graph.weights(rng.integers(-63, 64, (6, 16, 3, 3), np.int8), np.float32(1))
    bias = graph.constant(rng.integers(-magnitude, magnitude, 6, np.int32))
    grids = graph.grid(1, 3), graph.grid((magnitude + 500_000) / 100, 128)
    graph.node("QLinearConv", "images", *grids[0], *operands, *grids[1], bias)
    comparison.check(graph, images)


def test_sums_beyond_float32_are_exact(comparison: Comparison, graph: Graph) -> None:
    # 4000 products of 255 * 63 reach 64 million, where float32 holds every fourth integer.
    images = np.full((4, 4000, 1, 1), 255, np.uint8)
    images[:, 0, 0, 0] = [0, 1, 2, 3]
    codes = np.full((2, 4000, 1, 1), 63, np.int8)
    codes[:, 0] = 1
    rest = 3999 * 255 * 63
    bias = graph.constant(np.array([-rest, -rest - 1], np.int32))
    grids = graph.grid(1, 0), graph.grid(1, 10)
    graph.node("QLinearConv", "images", *grids[0], *graph.weights(codes, np.float32(1)), *grids[1], bias)
    found = comparison.check(graph, images, varied=False)
    assert found[:, :, 0, 0].tolist() == [[10, 9], [11, 10], [12, 11], [13, 12]]


def test_exact_float_changes_at_its_bound() -> None:
    assert exact_float(2**24 - 1) is np.float32
    assert exact_float(2**24) is np.float64


def test_int32_overflow_is_an_error(comparison: Comparison, graph: Graph) -> None:
    images = np.full((1, 1, 1, 1), 255, np.uint8)
    operands = graph.weights(np.full((1, 1, 1, 1), 63, np.int8), np.float32(1))
    bias = graph.constant(np.array([2**31 - 1], np.int32))
    graph.node("QLinearConv", "images", *graph.grid(1, 0), *operands, *graph.grid(1, 0), bias)
    reference = IntegerReference(comparison.read(graph.model(images)))
    with pytest.raises(ModelFileError, match=r"'QLinearConv_0' \(QLinearConv\): an accumulator .* beyond int32"):
        reference.run(images)
    assert reference.run(np.zeros_like(images)).tolist() == [[[[255]]]]


def test_halves_round_to_even(comparison: Comparison, graph: Graph) -> None:
    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    operands = graph.weights(np.ones((1, 1, 1, 1), np.int8), np.float32(1))
    graph.node("QLinearConv", "images", *graph.grid(1, 5), *operands, *graph.grid(2, 100))
    expected = [
        98,
        98,
        98,
        99,
        100,
        100,
        100,
        101,
        102,
        102,
    ]  # of -2.5, -2, -1.5, ..., 2 and a zero point of 100
    assert comparison.check(graph, images, varied=False).ravel().tolist() == expected
