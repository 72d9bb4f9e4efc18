"""Count the multiplications that a model executes for one image, and find their arithmetic, whoever wrote the file.

Weights and results have the shapes that ONNX Runtime infers when the file is loaded as it is. An operator multiplies
each element of its result `K` times:

    Conv, QLinearConv, ConvInteger      K = C_in / groups * kernel height * kernel width
    Gemm, MatMul, QGemm, QLinearMatMul, MatMulInteger, MatMulNBits      K = length of a row

and ConvTranspose each element of its input `C_out / groups * kernel height * kernel width` times. What is padded
counts, since it is executed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from qil_deploy.errors import ModelFileError
from qil_deploy.onnx_io import Node, OnnxFile, optimized_model, read_model, with_outputs
from qil_deploy.runtime_tests.sessions import create_session

INT8, FLOAT32, MIXED = "int8", "float32", "mixed"
Shape = tuple[int | str | None, ...]

# Position of the weights among the inputs.
_CONVOLUTIONS = {"Conv": 1, "QLinearConv": 3, "ConvInteger": 1}
_PRODUCTS = {"Gemm": 1, "MatMul": 1, "QGemm": 3, "QLinearMatMul": 3, "MatMulInteger": 1}
# Operators that multiply with weights in ways that are not counted here.
_UNCOUNTED = frozenset(
    {
        "Attention", "DeformConv", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "Einsum", "FusedConv", "FusedGemm",
        "FusedMatMul", "GRU", "LSTM", "MatMulIntegerToFloat", "MultiHeadAttention", "QAttention", "QMoE", "MoE", "RNN",
    }
)  # fmt: skip
_INTEGER_KERNELS = frozenset(
    {
        "ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits", "QGemm",
        "QLinearConv", "QLinearMatMul",
    }
)  # fmt: skip
_FLOAT_KERNELS = frozenset({"Conv", "ConvTranspose", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul"})


def count_macs(path: Path) -> int:
    """Count the multiplications with weights that a model executes for one image.

    Raises:
        ModelFileError: the file cannot be read without the `onnx` package or loaded without optimizations, a shape in
            it is not known, or it has operators that are not counted.
    """
    graph = read_model(path)
    uncounted = sorted({node.op_type for node in graph.nodes if node.op_type in _UNCOUNTED})
    if uncounted:
        raise ModelFileError(f"{path} has {', '.join(uncounted)}, whose multiplications are not counted.")
    nodes = [node for node in graph.nodes if _weights_of(node) is not None]
    shapes = _shapes(path, graph, nodes)
    return sum(_macs(node, shapes, path) for node in nodes)


def arithmetic_of(path: Path) -> str | None:
    """Return what layers with weights compute in after optimization: `INT8`, `FLOAT32` or `MIXED`; None without any.

    Raises:
        ModelFileError: the file cannot be loaded, or read without the `onnx` package.
    """
    operators = {node.op_type for node in optimized_model(path).nodes}
    found = [name for name, kernels in ((INT8, _INTEGER_KERNELS), (FLOAT32, _FLOAT_KERNELS)) if operators & kernels]
    return MIXED if len(found) > 1 else next(iter(found), None)


def _weights_of(node: Node) -> int | None:
    """Return which input of a node holds the weights, None if it has none."""
    if node.op_type in ("ConvTranspose", "MatMulNBits"):
        return 1
    return {**_CONVOLUTIONS, **_PRODUCTS}.get(node.op_type)


def _shapes(path: Path, graph: OnnxFile, nodes: list[Node]) -> Mapping[str, Shape]:
    """Return the shapes of all that some nodes read and of what they make, as ONNX Runtime infers them."""
    known: dict[str, Shape] = {name: array.shape for name, array in graph.initializers.items()}
    known |= {info.name: info.shape for info in graph.inputs if info.shape is not None}
    wanted = [name for node in nodes for name in (node.inputs[0], node.inputs[_weights_of(node) or 0], node.outputs[0])]
    missing = set(wanted) - set(known)
    if missing:
        inner = sorted(missing - {info.name for info in graph.outputs})
        session = create_session(path, level="disabled", content=with_outputs(path.read_bytes(), inner))
        known |= {output.name: tuple(output.shape) for output in session.get_outputs()}
    return known


def _macs(node: Node, shapes: Mapping[str, Shape], path: Path) -> int:
    x, weights, y = (
        shapes.get(name, ()) for name in (node.inputs[0], node.inputs[_weights_of(node) or 0], node.outputs[0])
    )
    if node.op_type in _CONVOLUTIONS:
        factors = (*weights[1:], *y[1:])
    elif node.op_type == "ConvTranspose":
        factors = (*weights[1:], *x[1:])
    elif node.op_type == "MatMulNBits":
        length = node.attributes.get("K")
        factors = (length if isinstance(length, int) else None, *y[1:])
    else:
        factors = (weights[-1 if node.attributes.get("transB", 0) else -2], *y[1:]) if len(weights) > 1 else (None,)
    if not weights or not all(isinstance(factor, int) for factor in factors):
        raise ModelFileError(f"{path} does not say which shapes {node.name!r} ({node.op_type}) reads and makes.")
    return math.prod(factors)  # type: ignore[arg-type] # just checked
