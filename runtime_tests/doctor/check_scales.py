"""Findings about meaningless scales, and about weights whose products some machines round differently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from qil_deploy.onnx_io import PACKED_MATMULS, Node
from qil_deploy.reference import operator_of

from .findings import Finding, found
from .graphs import Graph

_ZERO_POINTS: Final = 3
_ROUNDING_LEVEL: Final = 4


def bad_scales(graphs: Sequence[Graph]) -> list[Finding]:
    """Find operators of written graphs whose scales are not positive numbers."""
    return found(
        "bad-scale",
        "inexact",
        [graph.label(node) for graph in graphs for node in graph.file.nodes if _has_bad_scale(graph, node)],
        what="scales are not positive numbers",
        why="Codes times zero, infinity, NaN or a negative number have no meaning, and neither have results "
        "computed from them.",
        remedy="Look for channels without weights, or data without any spread, in what computed the scales.",
    )


def rounding_by_machine(executed: Sequence[Graph], written: Sequence[Graph]) -> list[Finding]:
    """Find executed multiplications by 4-bit weights that round differently on some machines.

    Args:
        executed: what ONNX Runtime executes, which fuses DequantizeLinear and MatMul to MatMulNBits; or the file's
            graphs, if it does not load.
        written: the graphs of the file.
    """
    is_written = any(node.op_type in PACKED_MATMULS for graph in written for node in graph.file.nodes)
    remedy = (
        "Give MatMulNBits its zero points, though they are the default (8 for each block)."
        if is_written
        else "Give DequantizeLinear of these weights its zero points, though they are 0: ONNX Runtime's optimizer "
        "makes MatMulNBits of it and MatMul, and hands them on."
    )
    return found(
        "rounding-by-machine",
        "inexact",
        [graph.label(node) for graph in executed for node in graph.file.nodes if _rounds_by_machine(node)],
        what="4-bit weights without zero points",
        why="ONNX Runtime on arm64 with dot product then rounds each row of the data as a whole, to int8 with a "
        "zero point; elsewhere it rounds block by block, symmetrically. Results differ between machines.",
        remedy=remedy,
    )


def _has_bad_scale(graph: Graph, node: Node) -> bool:
    scales = [graph.constant(node, grid.scale) for grid in operator_of(node).grids]
    return any(
        scale is not None and scale.dtype.kind == "f" and not np.all(np.isfinite(scale) & (scale > 0))
        for scale in scales
    )


def _rounds_by_machine(node: Node) -> bool:
    attributes = node.attributes
    return (
        node.op_type in PACKED_MATMULS
        and attributes.get("bits", 4) == 4
        and attributes.get("accuracy_level", 0) == _ROUNDING_LEVEL
        and not any(node.inputs[_ZERO_POINTS : _ZERO_POINTS + 1])
    )
