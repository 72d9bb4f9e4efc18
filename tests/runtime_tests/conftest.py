"""Small integer models, built node by node with `onnx`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qil_deploy.runtime_tests.browser import browser_state

CLASSES = ("cat", "dog", "fox", "hen", "owl")
SHAPE = (3, 8, 8)
SCALE = float(np.float32(0.013))
ZERO_POINT = 77
HIDDEN = 4

WriteModel = Callable[..., Path]


class _Graph:
    """Nodes and initializers in the order they are added; layers as QLinear operators, or as QDQ."""

    def __init__(self, *, qdq: bool) -> None:
        self.qdq = qdq
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, value: NDArray[Any] | np.generic) -> str:
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(
        self,
        op: str,
        *inputs: str,
        output: str | None = None,
        domain: str = "",
        **attributes: Any,  # noqa: ANN401 - whatever the operator takes
    ) -> str:
        name = output or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, domain=domain, **attributes))
        return name

    def quantize(self, values: str, scale: float, zero_point: int = 0) -> str:
        constants = self.constant(np.float32(scale)), self.constant(np.uint8(zero_point))
        return self.node("QuantizeLinear", values, *constants)

    def dequantize(self, codes: str, scale: float, zero_point: int = 0) -> str:
        constants = self.constant(np.float32(scale)), self.constant(np.uint8(zero_point))
        return self.node("DequantizeLinear", codes, *constants)

    def parameters(
        self, weights: NDArray[np.int8], scales: NDArray[np.float32], bias: NDArray[np.int32], x_scale: float
    ) -> tuple[str, str]:
        """Dequantize weights and bias, one scale per output.

        ONNX Runtime fuses Gemm to QGemm only where the zero points are written out.
        """
        pairs: list[tuple[NDArray[Any], NDArray[np.float32]]] = [(weights, scales)]
        pairs += [(bias, np.float32(x_scale) * scales)]
        weight_values, bias_values = (
            self.node(
                "DequantizeLinear",
                *map(self.constant, (codes, steps, np.zeros(len(steps), codes.dtype))),
                axis=0,
            )
            for codes, steps in pairs
        )
        return weight_values, bias_values

    def convolution(
        self,
        codes: str,
        x_scale: float,
        x_zero_point: int,
        weights: NDArray[np.int8],
        scales: NDArray[np.float32],
        y_scale: float,
    ) -> str:
        """3x3, padded, followed by a clip to 4-bit codes."""
        bias = np.random.default_rng(3).integers(-200, 200, len(weights), np.int32)
        window: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
        if self.qdq:
            values = self.dequantize(codes, x_scale, x_zero_point)
            values = self.node("Conv", values, *self.parameters(weights, scales, bias, x_scale), **window)
            result = self.quantize(values, y_scale)
        else:
            zeros = np.zeros(len(weights), np.int8)
            constants: list[NDArray[Any] | np.generic] = [np.float32(x_scale), np.uint8(x_zero_point)]
            constants += [weights, scales, zeros, np.float32(y_scale), np.uint8(0), bias]
            result = self.node("QLinearConv", codes, *map(self.constant, constants), **window)
        return self.node("Clip", result, self.constant(np.uint8(0)), self.constant(np.uint8(15)))

    def add(self, a: str, b: str, ratios: tuple[float, float], b_zero_point: int) -> str:
        """Return the sum as 8-bit codes of scale 1."""
        if self.qdq:
            terms = self.dequantize(a, ratios[0]), self.dequantize(b, ratios[1], b_zero_point)
            return self.quantize(self.node("Add", *terms), 1.0)
        zero, one = self.constant(np.uint8(0)), self.constant(np.float32(1))
        first = a, self.constant(np.float32(ratios[0])), zero
        second = b, self.constant(np.float32(ratios[1])), self.constant(np.uint8(b_zero_point))
        return self.node("QLinearAdd", *first, *second, one, zero, domain="com.microsoft")

    def classifier(self, codes: str, weights: NDArray[np.int8]) -> None:
        """Return float32 logits of codes of scale 1."""
        bias = np.random.default_rng(4).integers(-500, 500, len(weights), np.int32)
        scales = np.full(len(weights), 0.01, np.float32)
        if self.qdq:
            parameters = self.parameters(weights, scales, bias, 1.0)
            self.node("Gemm", self.dequantize(codes, 1.0), *parameters, output="logits", transB=1)
            return
        constants: list[NDArray[Any] | np.generic] = [np.float32(1), np.uint8(0), weights, scales]
        constants += [np.zeros(len(weights), np.int8), bias]
        inputs = [codes, *map(self.constant, constants)]
        self.node("QGemm", *inputs, output="logits", domain="com.microsoft", transB=1)


def _integer_nodes(graph: _Graph, image: str, *, ties: bool) -> None:
    """Two convolutions with 4-bit codes, their sum as 8-bit codes, a max pool and a fully connected layer."""
    generator = np.random.default_rng(0)
    scales = generator.uniform(0.01, 0.02, HIDDEN).astype(np.float32)
    weights = generator.integers(-63, 64, (HIDDEN, SHAPE[0], 3, 3), np.int8)
    first = graph.convolution(image, SCALE, ZERO_POINT, weights, scales, 0.05)
    ratios, b_zero_point = (31 / 101, 57 / 101), 0
    if ties and graph.qdq:
        # Accumulators times 0.05 * 0.1 / 0.01, one half: every odd one is a tie, in float only nearly so.
        weights = generator.integers(-1, 2, (HIDDEN, HIDDEN, 3, 3), np.int8)
        second = graph.convolution(first, 0.05, 0, weights, np.full(HIDDEN, 0.1, np.float32), 0.01)
    else:
        weights = generator.integers(-126, 127, (HIDDEN, HIDDEN, 3, 3), np.int8)
        second = graph.convolution(first, 0.05, 0, weights, scales, 0.04)
        if ties:
            # Half of an odd code is a tie, and float32 loses the negative second term beside it. The true sum
            # rounds down; what has lost it rounds to even (x86) or away from zero (arm64).
            ratios, b_zero_point = (0.5, 1e-12), 255
    pooled = graph.node("MaxPool", graph.add(first, second, ratios, b_zero_point), kernel_shape=[2, 2], strides=[2, 2])
    features = HIDDEN * SHAPE[1] * SHAPE[2] // 4
    weights = generator.integers(-63, 64, (len(CLASSES), features), np.int8)
    graph.classifier(graph.node("Flatten", pooled), weights)


def _float_nodes(graph: _Graph) -> None:
    weights = np.random.default_rng(0).standard_normal((int(np.prod(SHAPE)), len(CLASSES)), np.float32)
    graph.node("MatMul", graph.node("Flatten", "image"), graph.constant(weights), output="logits")


@pytest.fixture
def write_model(tmp_path: Path) -> WriteModel:
    """Return a function that writes a small model and returns its path.

    Options: `name` of the file, `format` ("qlinear", "qdq", "float"), `input` ("uint8", "float"), `batch` (a
    fixed first dimension), `ties` (a sum, or in "qdq" a convolution, whose results hang on the rounding of
    ties), `metadata`: entries that replace those of the model (None: the file carries no metadata at all).
    """

    def write(
        name: str = "model.onnx",
        *,
        format: str = "qlinear",  # noqa: A002 - the name that the metadata has
        input: str = "uint8",  # noqa: A002 - likewise
        batch: int | str = "batch",
        ties: bool = False,
        metadata: dict[str, Any] | None = {},  # noqa: B006 - never changed
    ) -> Path:
        graph = _Graph(qdq=format == "qdq")
        if format == "float":
            _float_nodes(graph)
        else:
            image = graph.quantize("image", SCALE, ZERO_POINT) if input == "float" else "image"
            _integer_nodes(graph, image, ties=ties)
        element = TensorProto.UINT8 if input == "uint8" else TensorProto.FLOAT
        model = helper.make_model(
            helper.make_graph(
                graph.nodes,
                "small",
                [helper.make_tensor_value_info("image", element, [batch, *SHAPE])],
                [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, len(CLASSES)])],
                graph.initializers,
            ),
            opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
            ir_version=10,
        )
        if metadata is not None:
            pixels: dict[str, float] = dict(zip(("channels", "height", "width"), SHAPE, strict=True))
            pixels |= {"scale": SCALE, "zero_point": ZERO_POINT}
            entries = {"schema": 1, "format": format, "input": input, "preprocessing": pixels, "class_names": CLASSES}
            entry = model.metadata_props.add()
            entry.key, entry.value = "qil_deploy", json.dumps(entries | metadata)
        path = tmp_path / name
        path.write_bytes(model.SerializeToString())
        return path

    return write


@pytest.fixture
def images() -> NDArray[np.uint8]:
    """Return 60 random images."""
    return np.random.default_rng(1).integers(0, 256, (60, *SHAPE), np.uint8)


@pytest.fixture
def labels() -> NDArray[np.int64]:
    """Return 60 random labels."""
    return np.random.default_rng(2).integers(0, len(CLASSES), 60)


@pytest.fixture(scope="session")
def browser() -> None:
    """Skip a test unless target wasm is set up."""
    reason = browser_state()
    if reason is not None:
        pytest.skip(f"target wasm: {reason}")


@pytest.fixture(scope="session")
def asked_for() -> Callable[[Mapping[str, Any]], set[str]]:
    """Return a function that finds the names in imports, URLs and links of a page's own resources."""
    names = re.compile(r'(?:from "\./|new URL\("|href="|src=")([\w.-]+)"')

    def find(resources: Mapping[str, Any]) -> set[str]:
        pages = [read() for name, read in resources.items() if name == "" or name.endswith((".html", ".js"))]
        return {name for page in pages for name in names.findall(page.decode())}

    return find
