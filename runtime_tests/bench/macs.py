"""Count the multiplications that a model executes for one image, and find its arithmetic, for any ONNX file.

Weights and results have the shapes that ONNX Runtime infers when the file is loaded as it is. An operator multiplies
each element of its result `K` times:

    Conv, QLinearConv, ConvInteger, TernaryConv, LowBitConv      K = C_in / groups * kernel height * kernel width
    Gemm, MatMul, QGemm, QLinearMatMul, MatMulInteger, MatMulNBits, LowBitMatMul      K = length of a row

and ConvTranspose each element of its input `C_out / groups * kernel height * kernel width` times. Padding counts, since
it is executed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from qil_deploy.errors import ModelFileError
from qil_deploy.onnx_io import (
    KERNEL_CONVOLUTIONS,
    PACKED_MATMULS,
    Node,
    OnnxFile,
    optimized_model,
    read_model,
    with_outputs,
)
from qil_deploy.reference import operator_of
from qil_deploy.runtime_tests.sessions import create_session

MIXED = "mixed"
Shape = tuple[int | str | None, ...]

_CONVOLUTIONS = frozenset({"Conv", "QLinearConv", "ConvInteger", *KERNEL_CONVOLUTIONS})
# Operators that multiply with weights in ways that are not counted here.
_UNCOUNTED = frozenset(
    {
        "Attention", "DeformConv", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "Einsum", "FusedConv", "FusedGemm",
        "FusedMatMul", "GRU", "LSTM", "MatMulIntegerToFloat", "MultiHeadAttention", "QAttention", "QMoE", "MoE", "RNN",
    }
)  # fmt: skip


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
    nodes = [node for node in graph.nodes if operator_of(node).weights is not None]
    shapes = _shapes(path, graph, nodes)
    return sum(_macs(node, shapes, path) for node in nodes)


def arithmetic_of(path: Path) -> str | None:
    """Return the arithmetic of layers with weights after optimization: `INT8`, `FLOAT32` or `MIXED`; None without any.

    Raises:
        ModelFileError: the file cannot be loaded, or read without the `onnx` package.
    """
    found = {operator_of(node).arithmetic for node in optimized_model(path).nodes} - {None}
    return MIXED if len(found) > 1 else next(iter(found), None)


def _shapes(path: Path, graph: OnnxFile, nodes: list[Node]) -> Mapping[str, Shape]:
    """Return the shapes of all inputs and results of some nodes, as ONNX Runtime infers them."""
    known: dict[str, Shape] = {name: array.shape for name, array in graph.initializers.items()}
    known |= {info.name: info.shape for info in graph.inputs if info.shape is not None}
    wanted = [
        name
        for node in nodes
        for name in (node.inputs[0], node.inputs[operator_of(node).weights or 0], node.outputs[0])
    ]
    missing = set(wanted) - set(known)
    if missing:
        inner = sorted(missing - {info.name for info in graph.outputs})
        session = create_session(path, level="disabled", content=with_outputs(path.read_bytes(), inner))
        known |= {output.name: tuple(output.shape) for output in session.get_outputs()}
    return known


def _macs(node: Node, shapes: Mapping[str, Shape], path: Path) -> int:
    x, weights, y = (
        shapes.get(name, ()) for name in (node.inputs[0], node.inputs[operator_of(node).weights or 0], node.outputs[0])
    )
    if node.op_type in _CONVOLUTIONS:
        factors = (*weights[1:], *y[1:])
    elif node.op_type == "ConvTranspose":
        factors = (*weights[1:], *x[1:])
    elif node.op_type in PACKED_MATMULS:
        length = node.attributes.get("K")
        factors = (length if isinstance(length, int) else None, *y[1:])
    else:
        factors = (weights[-1 if node.attributes.get("transB", 0) else -2], *y[1:]) if len(weights) > 1 else (None,)
    if not weights or not all(isinstance(factor, int) for factor in factors):
        raise ModelFileError(f"{path} does not say which shapes {node.name!r} ({node.op_type}) reads and makes.")
    return math.prod(factors)  # type: ignore[arg-type] # just checked
