"""Small graphs built node by node, and their comparison with ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import DTypeLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from qil_deploy.onnx_io.model_file import OnnxFile, read_model
from qil_deploy.reference import IntegerReference

Array = NDArray[Any]

LEVELS = {
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
FLOAT_OPERATORS = {"Conv", "Gemm", "Add", "AveragePool", "GlobalAveragePool"}  # what has to be fused


@dataclass
class Graph:
    """A model that grows node by node, with one input, `images`."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, value: Array | np.generic, name: str = "") -> str:
        name = name or f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def packed(self, codes: Array, bits: int) -> str:
        """Store codes as INT4 or INT2."""
        kind = {4: TensorProto.INT4, 2: TensorProto.INT2}[bits]
        return self.constant(codes.astype(helper.tensor_dtype_to_np_dtype(kind)))

    def grid(self, scale: float, zero_point: int) -> tuple[str, str]:
        """Add a scale and a zero point of uint8 codes."""
        return self.constant(np.float32(scale)), self.constant(np.uint8(zero_point))

    def weights(self, codes: Array | str, scales: Array | np.generic) -> tuple[str, str, str]:
        """Add int8 weights (unless they are a tensor's name), their scales and a zero point for each."""
        zero_points = self.constant(np.zeros(scales.shape, np.int8))
        return codes if isinstance(codes, str) else self.constant(codes), self.constant(scales), zero_points

    def node(
        self,
        op: str,
        *inputs: str,
        domain: str = "",
        **attributes: Any,  # noqa: ANN401 - whatever the operator takes
    ) -> str:
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, domain=domain, **attributes))
        return name

    def quantize(self, x: str, scale: float, zero_point: int) -> str:
        return self.node("QuantizeLinear", x, *self.grid(scale, zero_point))

    def dequantize(self, codes: str, scale: float, zero_point: int) -> str:
        return self.node("DequantizeLinear", codes, *self.grid(scale, zero_point))

    def dequantize_weights(self, weights: str, bias: Array | None, x_scale: float, scales: Array) -> list[str]:
        """Add weights and bias as a QDQ file stores them: integers, each with its scale along axis 0."""
        grid = self.constant(scales), self.constant(np.zeros(scales.shape, np.int8))
        operands = [self.node("DequantizeLinear", weights, *grid, axis=0)]
        if bias is not None:
            bias_scales = self.constant(np.float32(x_scale) * scales)
            operands.append(self.node("DequantizeLinear", self.constant(bias), bias_scales, axis=0))
        return operands

    def model(
        self, images: Array, *, output: str = "", dtype: DTypeLike = np.uint8, batch: int | str = "batch"
    ) -> onnx.ModelProto:
        """Return the model whose output is the last node's, or the named one."""
        image_type, output_type = (helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for kind in (images.dtype, dtype))
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info("images", image_type, [batch, *images.shape[1:]])],
            [helper.make_tensor_value_info(output or self.nodes[-1].output[0], output_type, None)],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", 25), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=13)


def run_runtime(model: onnx.ModelProto, images: Array, level: str, optimized: Path | None = None) -> Array:
    """Run a model, and write the optimizer's result to `optimized`."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimized:
        options.optimized_model_filepath = str(optimized)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": images})[0])


@dataclass(frozen=True)
class Comparison:
    """Compares the integer reference with ONNX Runtime."""

    folder: Path

    @staticmethod
    def new_graph() -> Graph:
        """Return an empty graph; the fixture `graph` is one per test, not one per hypothesis example."""
        return Graph()

    def read(self, model: onnx.ModelProto) -> OnnxFile:
        path = self.folder / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return read_model(path)

    def check(
        self,
        graph: Graph,
        images: Array,
        *,
        dtype: DTypeLike = np.uint8,
        levels: tuple[str, ...] = tuple(LEVELS),
        varied: bool = True,
    ) -> Array:
        """Require equality at every level; returns the output.

        `varied` requires several distinct results besides: all saturated, any arithmetic would be equal.
        """
        model = graph.model(images, dtype=dtype)
        found = IntegerReference(self.read(model)).run(images)
        for level in levels:
            np.testing.assert_array_equal(found, run_runtime(model, images, level), strict=True)
        if varied:
            assert len(np.unique(found)) > 5
        return found

    def check_fused(self, graph: Graph, images: Array, operators: list[str], *, dtype: DTypeLike = np.uint8) -> Array:
        """Require that a QDQ graph fuses to `operators` and equals ONNX Runtime if that fuses, too."""
        reference = IntegerReference(self.read(graph.model(images, dtype=dtype)))
        assert [node.op_type for node in reference.nodes] == operators
        optimized = self.folder / "optimized.onnx"
        run_runtime(graph.model(images, dtype=dtype), images, "all", optimized)
        assert not {node.op_type for node in onnx.load(optimized).graph.node} & FLOAT_OPERATORS
        return self.check(graph, images, dtype=dtype, levels=("all",))


@pytest.fixture
def graph() -> Graph:
    return Graph()


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return Comparison(tmp_path_factory.mktemp("reference"))
