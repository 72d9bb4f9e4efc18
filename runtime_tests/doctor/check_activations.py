"""Findings about how activations are quantized: signed, or with scales that are measured on each input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from qil_deploy.onnx_io import Node
from qil_deploy.reference import Effect, names_of, operator_of

from .findings import Finding, found
from .graphs import MOVES, Graph

X86: Final = frozenset({"x86_64", "amd64", "i386", "i686", "x86"})
_DYNAMIC: Final = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"})
_INTEGER_SUMS: Final = frozenset({"ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"})
_FLOAT_LAYERS: Final = frozenset({"Conv", "FusedConv", "MatMul"})  # QGemm and others take int8 codes
_PASSED: Final = MOVES | names_of(Effect.CHOOSES, Effect.BOUNDS)


def is_x86(machine: str) -> bool:
    """Whether an instruction set, by Python's name for it, is x86."""
    return machine.lower() in X86


def signed_activations(executed: Sequence[Graph], machine: str) -> list[Finding]:
    """Find layers that read int8 codes on processors where that is slow.

    Args:
        executed: what ONNX Runtime executes on this machine, where it may have made uint8 of int8.
        machine: its instruction set.
    """
    if not is_x86(machine):
        return []
    places = [graph.label(node) for graph in executed for node in graph.file.nodes if _reads_signed_codes(graph, node)]
    return found(
        "s8s8",
        "slow",
        places,
        what="activations are int8 (S8S8)",
        why="On x86 ONNX Runtime has fast kernels for uint8 codes alone. QLinearConv of int8 codes is slow (ResNet-18: "
        "187 ms instead of 10). In QDQ files it makes uint8 of int8 where one DequantizeLinear alone reads the codes; "
        "layers between codes of both types, or of int8, stay float (30 ms).",
        remedy="Quantize activations to uint8 and weights to int8 "
        "(quantize_static: activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8).",
    )


def _reads_signed_codes(graph: Graph, node: Node) -> bool:
    if operator_of(node).is_integer_layer:
        return bool(node.inputs) and graph.type_of(node.inputs[0]) == "int8"
    if node.op_type not in _FLOAT_LAYERS or not node.inputs:
        return False
    source = graph.source(node.inputs[0], _PASSED)
    if source is None or source.op_type != "DequantizeLinear" or source.outputs[0] in graph.constants:
        return False
    return graph.type_of(source.inputs[0]) == "int8"


def dynamic_quantization(graphs: Sequence[Graph]) -> list[Finding]:
    """Find quantization with scales that are measured on each input."""
    return found(
        "dynamic-quantization",
        "slow",
        [graph.label(node) for graph in graphs for node in graph.file.nodes if _is_dynamic(graph, node)],
        what="activations are quantized dynamically",
        why="Scales are measured anew on every run, sums go through float between layers, and what an image gives "
        "depends on the images that it shares a batch with.",
        remedy="Quantize statically, with scales from calibration (quantize_static) or training.",
    )


def _is_dynamic(graph: Graph, node: Node) -> bool:
    if node.op_type in _DYNAMIC:
        return True
    if node.op_type not in _INTEGER_SUMS or not node.inputs:
        return False
    source = graph.source(node.inputs[0], _PASSED)
    return source is not None and source.op_type in _DYNAMIC
