"""Findings about simulated quantization: values rounded to a grid, and kept in float.

Trainers write it as an operator of their own (QONNX and Brevitas: Quant; OpenVINO: FakeQuantize; TensorFlow:
FakeQuantWithMinMaxVars), or as arithmetic:

    y = scale * (clip(round(x / scale) + zero_point, low, high) - zero_point)

A pair of QuantizeLinear and DequantizeLinear is the form that runtimes know, and not a finding.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from qil_deploy.onnx_io import Node

from .findings import Finding, found
from .graphs import Graph

_NAMES: Final = re.compile(r"fake_?quant|^(bipolarquant|intquant|floatquant|quantizebfp|dequantizebfp)$", re.IGNORECASE)
_QONNX: Final = re.compile(r"qonnx|finn|brevitas")
_QONNX_OPERATORS: Final = frozenset({"Quant", "Trunc", "BipolarQuant", "IntQuant", "FloatQuant"})
# MQBench's names for learned grids.
_LEARNED: Final = frozenset({"LearnablePerTensorAffine", "FixedPerTensorAffine", "FixedPerChannelAffine"})
_BETWEEN: Final = frozenset({"Add", "Cast", "Clip", "Identity", "Max", "Min", "Sub"})
_SCALING: Final = frozenset({"Div", "Mul"})
_LONGEST_CHAIN: Final = 8


def fake_quantization(graphs: Sequence[Graph], *, loads: bool) -> list[Finding]:
    """Find values of written graphs that are rounded to a grid in float.

    Args:
        graphs: the graphs of the file.
        loads: whether ONNX Runtime loads it.
    """
    operators = [graph.label(node) for graph in graphs for node in graph.file.nodes if is_fake_quantizer(node)]
    chains = [graph.label(node) for graph in graphs for node in graph.file.nodes if _is_fake_rounding(graph, node)]
    return found(
        "fake-quantization",
        "slow" if loads else "blocks",
        [*operators, *chains],
        what="quantization is simulated in float",
        why="Values are rounded to a grid and stay float: ONNX Runtime makes no integer kernels of that, and the "
        "rounding costs time on top."
        if loads
        else "Values are rounded to a grid and stay float, by operators that ONNX Runtime does not have.",
        remedy="Export with QuantizeLinear and DequantizeLinear instead (Brevitas: export_onnx_qcdq; QONNX: its "
        "conversion to QCDQ; torch: fake_quantize modules with a range of 8 bits).",
    )


def is_fake_quantizer(node: Node) -> bool:
    """Whether a node is a custom operator that rounds to a grid."""
    if node.op_type in _LEARNED or _NAMES.search(node.op_type):
        return True
    if node.op_type in ("ATen", "PythonOp"):
        return any(isinstance(value, str) and _NAMES.search(value) for value in node.attributes.values())
    return node.op_type in _QONNX_OPERATORS and bool(_QONNX.search(node.domain))


def _is_fake_rounding(graph: Graph, node: Node) -> bool:
    """Whether a Round stands between a division by a scale and a multiplication by it."""
    if node.op_type != "Round" or not node.inputs or not node.outputs:
        return False
    return _is_scaled_before(graph, node.inputs[0]) and _is_scaled_behind(graph, node.outputs[0])


def _is_scaled_before(graph: Graph, name: str) -> bool:
    for _ in range(_LONGEST_CHAIN):
        producer = graph.producers.get(name)
        if producer is None or not producer.inputs:
            # A trainer may have computed weight / scale when it exported.
            return producer is None and name in graph.constants
        if producer.op_type in _SCALING:
            return any(source in graph.constants for source in producer.inputs)
        if producer.op_type not in _BETWEEN:
            return False
        name = producer.inputs[0]
    return False


def _is_scaled_behind(graph: Graph, name: str) -> bool:
    for _ in range(_LONGEST_CHAIN):
        readers = graph.readers.get(name, [])
        if any(reader.op_type in _SCALING and _others_constant(graph, reader, name) for reader in readers):
            return True
        following = [reader for reader in readers if reader.op_type in _BETWEEN and reader.outputs]
        if not following:
            return False
        name = following[0].outputs[0]
    return False


def _others_constant(graph: Graph, node: Node, name: str) -> bool:
    return all(source in graph.constants for source in node.inputs if source != name)
