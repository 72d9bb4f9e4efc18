"""Findings about scales that mean nothing, and about weights that some machines multiply by other roundings."""

from __future__ import annotations

import numpy as np

from qil_deploy.onnx_file import Node

from .findings import Finding, found, label
from .network import Network

# Where the scales of each operator stand among its inputs.
_SCALES = {
    "QuantizeLinear": (1,),
    "DequantizeLinear": (1,),
    "QLinearConv": (1, 4, 6),
    "QLinearMatMul": (1, 4, 6),
    "QGemm": (1, 4, 7),
    "QLinearAdd": (1, 4, 6),
    "QLinearMul": (1, 4, 6),
    "QLinearAveragePool": (1, 3),
    "QLinearGlobalAveragePool": (1, 3),
    "QLinearSigmoid": (1, 3),
    "QLinearLeakyRelu": (1, 3),
}
_ZERO_POINTS = 3
_ROUNDING_LEVEL = 4


def scale_findings(network: Network) -> list[Finding]:
    """Return what is wrong with the scales of a graph, and where zero points are missing that decide a kernel."""
    nodes = network.file.nodes
    return [
        *found(
            "bad-scale",
            "inexact",
            [label(node) for node in nodes if _has_bad_scale(network, node)],
            what="scales are not positive numbers",
            why="Codes times zero, infinity, NaN or a negative number stand for nothing, and neither do results "
            "behind them.",
            remedy="Look for channels without weights, or data without any spread, in what computed the scales.",
        ),
        *found(
            "rounding-by-machine",
            "inexact",
            [label(node) for node in nodes if _rounds_by_machine(node)],
            what="4-bit weights without zero points",
            why="ONNX Runtime on arm64 with dot product then rounds each row of the data as a whole, to int8 with a "
            "zero point; elsewhere it rounds block by block, symmetrically. Results differ between machines.",
            remedy="Give MatMulNBits its zero points, though they are the default (8 for each block).",
        ),
    ]


def _has_bad_scale(network: Network, node: Node) -> bool:
    scales = [network.constant(node, index) for index in _SCALES.get(node.op_type, ())]
    return any(
        scale is not None and scale.dtype.kind == "f" and not np.all(np.isfinite(scale) & (scale > 0))
        for scale in scales
    )


def _rounds_by_machine(node: Node) -> bool:
    attributes = node.attributes
    return (
        node.op_type == "MatMulNBits"
        and attributes.get("bits", 4) == 4
        and attributes.get("accuracy_level", 0) == _ROUNDING_LEVEL
        and not any(node.inputs[_ZERO_POINTS : _ZERO_POINTS + 1])
    )
