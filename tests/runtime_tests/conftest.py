"""Small integer models, built node by node with `onnx`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CLASSES = ("cat", "dog", "fox", "hen", "owl")
SHAPE = (2, 8, 8)
SCALE = float(np.float32(0.013))
ZERO_POINT = 77
HIDDEN = 4

WriteModel = Callable[..., Path]


class _Graph:
    """Nodes and initializers in the order they are added."""

    def __init__(self) -> None:
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


def _convolution(
    graph: _Graph, image: str, x_scale: float, x_zero_point: int, y_scale: float, w: NDArray[np.int8]
) -> str:
    generator = np.random.default_rng(len(graph.nodes))
    scales = generator.uniform(0.01, 0.02, len(w)).astype(np.float32)
    convolved = graph.node(
        "QLinearConv",
        image,
        graph.constant(np.float32(x_scale)),
        graph.constant(np.uint8(x_zero_point)),
        graph.constant(w),
        graph.constant(scales),
        graph.constant(np.zeros(len(w), np.int8)),
        graph.constant(np.float32(y_scale)),
        graph.constant(np.uint8(0)),
        graph.constant(generator.integers(-200, 200, len(w)).astype(np.int32)),
        kernel_shape=[3, 3],
        pads=[1, 1, 1, 1],
    )
    return graph.node("Clip", convolved, graph.constant(np.uint8(0)), graph.constant(np.uint8(15)))


def _integer_nodes(graph: _Graph, add_ratios: tuple[float, float], add_zero_point: int) -> None:
    """Two convolutions with 4-bit codes, their sum as 8-bit codes, a max pool and a fully connected layer."""
    generator = np.random.default_rng(0)
    image = "image" if not graph.nodes else graph.nodes[-1].output[0]
    first = _convolution(
        graph, image, SCALE, ZERO_POINT, 0.05, generator.integers(-63, 64, (HIDDEN, SHAPE[0], 3, 3), np.int8)
    )
    second = _convolution(
        graph, first, 0.05, 0, 0.04, generator.integers(-126, 127, (HIDDEN, HIDDEN, 3, 3), np.int8)
    )
    zero = graph.constant(np.uint8(0))
    added = graph.node(
        "QLinearAdd",
        first,
        graph.constant(np.float32(add_ratios[0])),
        zero,
        second,
        graph.constant(np.float32(add_ratios[1])),
        graph.constant(np.uint8(add_zero_point)),
        graph.constant(np.float32(1.0)),
        zero,
        domain="com.microsoft",
    )
    pooled = graph.node("MaxPool", added, kernel_shape=[2, 2], strides=[2, 2])
    flat = graph.node("Flatten", pooled)
    features = HIDDEN * SHAPE[1] * SHAPE[2] // 4
    graph.node(
        "QGemm",
        flat,
        graph.constant(np.float32(1.0)),
        zero,
        graph.constant(generator.integers(-63, 64, (len(CLASSES), features), np.int8)),
        graph.constant(np.float32(0.01)),
        graph.constant(np.int8(0)),
        graph.constant(generator.integers(-500, 500, len(CLASSES)).astype(np.int32)),
        output="logits",
        domain="com.microsoft",
        transB=1,
    )


def _float_nodes(graph: _Graph) -> None:
    weights = np.random.default_rng(0).standard_normal((int(np.prod(SHAPE)), len(CLASSES)), np.float32)
    graph.node("MatMul", graph.node("Flatten", "image"), graph.constant(weights), output="logits")


@pytest.fixture
def write_model(tmp_path: Path) -> WriteModel:
    """Return a function that writes a small model and returns its path.

    Options: `name` of the file, `format`, `input` ("uint8" or "float"), `batch` (a fixed first dimension),
    `add_ratios` of the two terms of the sum, `add_zero_point` of the second, `metadata`: entries that replace
    those of the model (None: the file carries no metadata at all).
    """

    def write(
        name: str = "model.onnx",
        *,
        format: str = "qlinear",  # noqa: A002 - the name that the metadata has
        input: str = "uint8",  # noqa: A002 - likewise
        batch: int | str = "batch",
        add_ratios: tuple[float, float] = (31 / 101, 57 / 101),
        add_zero_point: int = 0,
        metadata: dict[str, Any] | None = {},  # noqa: B006 - never changed
    ) -> Path:
        graph = _Graph()
        if format == "float":
            _float_nodes(graph)
        else:
            if input == "float":
                scale, zero_point = graph.constant(np.float32(SCALE)), graph.constant(np.uint8(ZERO_POINT))
                graph.node("QuantizeLinear", "image", scale, zero_point)
            _integer_nodes(graph, add_ratios, add_zero_point)
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
            entries = {"format": format, "input": input, "preprocessing": pixels, "class_names": CLASSES}
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
