"""The QDQ format: the operators it fuses to, and their results where ONNX Runtime fuses, too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto

from qil_deploy.errors import ModelFileError
from qil_deploy.reference import IntegerReference

if TYPE_CHECKING:
    from tests.reference.conftest import Comparison, Graph

ODD = 4095  # exported ratios are p/q with one odd q of at most 4095: no result is a tie


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("attributes", "inputs_per_group", "zero_points"),
    [
        ({"pads": [1] * 4}, 12, (0, 0)),
        ({"pads": [1] * 4, "strides": [2, 2]}, 12, (114, 128)),
        ({"pads": [1] * 4, "group": 12}, 1, (73, 10)),
        ({"dilations": [2, 2], "group": 2}, 6, (0, 128)),
    ],
)
def test_conv(
    comparison: Comparison,
    graph: Graph,
    rng: np.random.Generator,
    attributes: dict[str, Any],
    inputs_per_group: int,
    zero_points: tuple[int, int],
    bias: bool,
) -> None:
    weights = graph.constant(rng.integers(-63, 64, (12, inputs_per_group, 3, 3), np.int8))
    scales = rng.uniform(0.001, 0.002, 12).astype(np.float32)
    biases = rng.integers(-9999, 9999, 12, np.int32) if bias else None
    x = graph.dequantize("images", 0.5, zero_points[0])
    y = graph.node("Conv", x, *graph.dequantize_weights(weights, biases, 0.5, scales), **attributes)
    y = graph.quantize(y, 0.3, zero_points[1])
    graph.node("Clip", y, graph.constant(np.uint8(2)), graph.constant(np.uint8(250)))
    images = rng.integers(0, 256, (2, 12, 8, 9), np.uint8)
    comparison.check_fused(graph, images, ["QLinearConv", "Clip"])


@pytest.mark.parametrize(("bits", "factor"), [(4, None), (4, 18), (2, 127)])
def test_conv_with_packed_weights(
    comparison: Comparison, graph: Graph, rng: np.random.Generator, bits: int, factor: int | None
) -> None:
    largest = 2 ** (bits - 1) - 1
    codes = rng.integers(-largest, largest, (4, 3, 3, 3), endpoint=True)
    weights = graph.node("Cast", graph.packed(codes, bits), to=TensorProto.INT8)
    if factor:
        weights = graph.node("Mul", weights, graph.constant(np.int8(factor)))
    scales = rng.uniform(0.5, 1.5, 4).astype(np.float32) / np.float32(largest * (factor or 1))
    operands = graph.dequantize_weights(weights, rng.integers(-99, 99, 4, np.int32), 1 / 15, scales)
    graph.quantize(graph.node("Conv", graph.dequantize("images", 1 / 15, 0), *operands, pads=[1] * 4), 0.05, 100)
    comparison.check_fused(graph, rng.integers(0, 16, (2, 3, 8, 8), np.uint8), ["QLinearConv"])


def test_add(comparison: Comparison, graph: Graph, rng: np.random.Generator) -> None:
    x = graph.dequantize("images", 0.02 * 2000 / ODD, 3)
    constant = graph.constant(rng.integers(0, 256, (1, 5, 1, 1), np.uint8))
    graph.quantize(graph.node("Add", x, graph.dequantize(constant, 0.02 * 1000 / ODD, 128)), 0.02, 100)
    comparison.check_fused(graph, rng.integers(0, 256, (2, 5, 8, 8), np.uint8), ["QLinearAdd"])


@pytest.mark.parametrize(
    ("op", "attributes"),
    [("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}), ("GlobalAveragePool", {})],
)
def test_average_pools(
    comparison: Comparison, graph: Graph, rng: np.random.Generator, op: str, attributes: dict[str, Any]
) -> None:
    # The number of elements, 4 or 64, divides the ratio's numerator.
    pooled = graph.node(op, graph.dequantize("images", 0.02 * 64 * 61 / ODD, 7), **attributes)
    graph.quantize(pooled, 0.02, 20)
    comparison.check_fused(graph, rng.integers(0, 256, (2, 5, 8, 8), np.uint8), [f"QLinear{op}"])


def test_max_pool_moves_codes(comparison: Comparison, graph: Graph, rng: np.random.Generator) -> None:
    largest = graph.node("MaxPool", graph.dequantize("images", 0.02, 100), kernel_shape=[2, 2])
    graph.quantize(largest, 0.02, 100)
    images = rng.integers(0, 256, (2, 5, 8, 8), np.uint8)
    comparison.check_fused(graph, images, ["MaxPool", "DequantizeLinear", "QuantizeLinear"])


@pytest.mark.parametrize("requantized", [True, False])
@pytest.mark.parametrize("flattened", ["codes", "values reshaped", "values requantized"])
def test_gemm(
    comparison: Comparison, graph: Graph, rng: np.random.Generator, requantized: bool, flattened: str
) -> None:
    operators = ["Flatten", "QGemm"]
    if flattened == "codes":
        x = graph.dequantize(graph.node("Flatten", "images"), 0.25, 8)
    elif flattened == "values reshaped":
        x = graph.node("Reshape", graph.dequantize("images", 0.25, 8), graph.constant(np.array([0, -1])))
        operators = ["Reshape", "QGemm"]
    else:
        x = graph.node("Flatten", graph.dequantize("images", 0.25, 8))
        x = graph.dequantize(graph.quantize(x, 0.25, 8), 0.25, 8)
        operators = ["DequantizeLinear", "Flatten", "QuantizeLinear", "QGemm"]
    weights = graph.constant(rng.integers(-63, 64, (10, 40), np.int8))
    scales = rng.uniform(0.01, 0.02, 10).astype(np.float32)
    bias = rng.integers(-9999, 9999, 10, np.int32)
    y = graph.node("Gemm", x, *graph.dequantize_weights(weights, bias, 0.25, scales), transB=1)
    if requantized:
        graph.quantize(y, 2, 120)
    images = rng.integers(0, 256, (5, 40, 1, 1), np.uint8)
    comparison.check_fused(graph, images, operators, dtype=np.uint8 if requantized else np.float32)


def test_residual_network(comparison: Comparison, graph: Graph, rng: np.random.Generator) -> None:
    """A float input, codes used twice, a residual sum and logits fuse as a whole."""

    def conv(x: str, x_scale: float) -> str:
        weights = graph.constant(rng.integers(-63, 64, (4, 4, 3, 3), np.int8))
        scales, bias = rng.uniform(0.001, 0.004, 4).astype(np.float32), rng.integers(-999, 999, 4, np.int32)
        return graph.node("Conv", x, *graph.dequantize_weights(weights, bias, x_scale, scales), pads=[1] * 4)

    grids = {
        "stream": (0.02, 114),
        "block": (0.05, 8),
        "branch": (0.02 * 2000 / ODD, 128),
        "sum": (0.03, 100),
    }
    x = graph.dequantize(graph.quantize("images", *grids["stream"]), *grids["stream"])
    y = graph.quantize(conv(x, 0.02), *grids["block"])
    y = graph.node("Clip", y, graph.constant(np.uint8(0)), graph.constant(np.uint8(15)))
    y = conv(graph.dequantize(y, *grids["block"]), 0.05)
    y = graph.dequantize(graph.quantize(y, *grids["branch"]), *grids["branch"])
    y = graph.quantize(graph.node("Add", y, x), *grids["sum"])
    y = graph.dequantize(graph.node("Flatten", y), *grids["sum"])
    weights = graph.constant(rng.integers(-63, 64, (10, 256), np.int8))
    scales, bias = rng.uniform(0.01, 0.02, 10).astype(np.float32), rng.integers(-9999, 9999, 10, np.int32)
    graph.node("Gemm", y, *graph.dequantize_weights(weights, bias, grids["sum"][0], scales), transB=1)
    operators = ["QuantizeLinear", "QLinearConv", "Clip", "QLinearConv", "QLinearAdd", "Flatten", "QGemm"]
    images = rng.normal(0, 1, (3, 4, 8, 8)).astype(np.float32)
    comparison.check_fused(graph, images, operators, dtype=np.float32)


def bias_grid(graph: Graph, scale: float, zero_point: int) -> tuple[str, str]:
    return graph.constant(np.float32(scale)), graph.constant(np.int32(zero_point))


@pytest.mark.parametrize(
    ("scale", "zero_point", "message"),
    [
        (1.0001, 0, "is not scaled by its input's scale times its weights' scale"),
        (1.0, 1, "has a zero point"),
    ],
)
def test_a_bias_that_is_no_accumulator_is_refused(
    comparison: Comparison, graph: Graph, scale: float, zero_point: int, message: str
) -> None:
    images = np.zeros((1, 1, 1, 1), np.uint8)
    weights = graph.constant(np.ones((1, 1, 1, 1), np.int8))
    w = graph.node("DequantizeLinear", weights, graph.constant(np.float32(2)))
    b = graph.node("DequantizeLinear", graph.constant(np.ones(1, np.int32)), *bias_grid(graph, scale, zero_point))
    graph.quantize(graph.node("Conv", graph.dequantize("images", 0.5, 0), w, b), 1, 0)
    with pytest.raises(ModelFileError, match=f"the bias of 'Conv_3' {message}"):
        IntegerReference(comparison.read(graph.model(images)))


def test_weights_scaled_along_another_axis_are_refused(comparison: Comparison, graph: Graph) -> None:
    images, scales = np.zeros((1, 2, 1, 1), np.uint8), np.ones(2, np.float32)
    weights = graph.constant(np.ones((2, 2, 1, 1), np.int8))
    w = graph.node("DequantizeLinear", weights, graph.constant(scales), axis=1)
    graph.quantize(graph.node("Conv", graph.dequantize("images", 0.5, 0), w), 1, 0)
    with pytest.raises(ModelFileError, match="the weights of 'Conv_2' are scaled along axis 1; it must be 0"):
        IntegerReference(comparison.read(graph.model(images)))


@pytest.mark.parametrize("without", ["data", "weights"])
def test_a_gemm_that_the_runtime_would_not_fuse_is_refused(comparison: Comparison, graph: Graph, without: str) -> None:
    images = np.zeros((1, 2), np.uint8)
    data = ["images", *graph.grid(1, 0)]
    weights = list(graph.weights(np.ones((2, 2), np.int8), np.float32(1)))
    del (data if without == "data" else weights)[2]
    values = [graph.node("DequantizeLinear", *operand) for operand in (data, weights)]
    graph.node("Gemm", *values, transB=1)
    with pytest.raises(ModelFileError, match="data and weights of 'Gemm_2' need explicit zero points"):
        IntegerReference(comparison.read(graph.model(images, dtype=np.float32)))


def test_a_gemm_of_flattened_values_is_refused(comparison: Comparison, graph: Graph) -> None:
    images = np.zeros((1, 2), np.uint8)
    x = graph.node("Flatten", graph.dequantize("images", 1, 0))
    weights = graph.constant(np.ones((2, 2), np.int8))
    graph.node("Gemm", x, *graph.dequantize_weights(weights, None, 1, np.ones(2, np.float32)), transB=1)
    with pytest.raises(ModelFileError, match=r"'Gemm_3' \(Gemm\): no integer kernel .* stand between"):
        IntegerReference(comparison.read(graph.model(images, dtype=np.float32)))


def test_a_conv_whose_values_are_used_twice_is_refused(comparison: Comparison, graph: Graph) -> None:
    images = np.zeros((1, 1, 1, 1), np.uint8)
    weights = graph.constant(np.ones((1, 1, 1, 1), np.int8))
    operands = graph.dequantize_weights(weights, None, 1, np.ones(1, np.float32))
    y = graph.node("Conv", graph.dequantize("images", 0.5, 0), *operands)
    graph.node("Concat", graph.quantize(y, 1, 0), graph.quantize(y, 2, 0))
    with pytest.raises(ModelFileError, match=r"'Conv_2' \(Conv\): no integer kernel .* stand between"):
        IntegerReference(comparison.read(graph.model(images)))
