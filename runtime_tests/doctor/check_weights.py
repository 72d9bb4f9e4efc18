"""Findings about stored weights: packed, with one scale for all channels, dequantized by hand, or float."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from numpy.typing import NDArray

from qil_deploy.onnx_io import Node
from qil_deploy.reference import operator_of

from .check_fused_scales import output_axis
from .findings import Finding, found, quoted
from .graphs import Graph

PACKED: Final = frozenset({"int4", "uint4", "int2", "uint2"})
_CODES: Final = PACKED | {"int8", "uint8", "int16", "uint16", "int32"}
_BY_HAND: Final = frozenset({"Add", "Cast", "Div", "Mul", "Reshape", "Sub", "Transpose", "Unsqueeze", "Identity"})
_LONGEST_CHAIN: Final = 8
_MADE_BY_RUNTIME: Final = "_weight_q"  # ONNX Runtime's name for codes that it computes from float weights


def packed_weights(graphs: Sequence[Graph], *, loads: bool) -> Iterator[Finding]:
    """Find DequantizeLinear directly on packed weights of convolutions and linear layers.

    Args:
        graphs: what ONNX Runtime executes, or the file's graphs if it does not load.
        loads: whether it loads.
    """
    places: dict[str, list[str]] = {"4": [], "2": []}
    for graph in graphs:
        for node in graph.file.nodes:
            weights = weights_dequantizer(graph, node)
            if weights is None or node.op_type in ("MatMul", "FusedMatMul"):
                continue
            stored = graph.file.stored_types.get(weights.inputs[0], "")
            if stored in PACKED:
                places[stored[-1]].append(f"{graph.label(weights)} before {graph.label(node)}")
    remedy = (
        "Put Cast to int8 between the packed initializer and DequantizeLinear: ONNX Runtime computes it once, when it "
        "loads the file, which stays as small."
    )
    yield from found(
        "int4-dequantize",
        "slow",
        places["4"],
        what="DequantizeLinear stands directly on INT4 weights",
        why="ONNX Runtime fuses no integer kernel then and computes in float: ResNet-18 takes 53 ms instead of 10 ms.",
        remedy=remedy,
    )
    yield from found(
        "int2-dequantize",
        "slow" if loads else "blocks",
        places["2"],
        what="DequantizeLinear stands directly on INT2 weights",
        why="ONNX Runtime's optimizer builds an invalid QLinearConv of it, and the file does not load."
        if not loads
        else "ONNX Runtime fuses no integer kernel then and computes in float.",
        remedy=remedy,
    )


def weights_dequantizer(graph: Graph, node: Node) -> Node | None:
    """Return the DequantizeLinear of constant codes that a layer's weights come from."""
    if not operator_of(node).is_float_layer or len(node.inputs) < 2:
        return None
    source = graph.source(node.inputs[1])
    if source is None or source.op_type != "DequantizeLinear" or not source.inputs:
        return None
    return source if source.outputs[0] in graph.constants else None


def one_scale(graphs: Sequence[Graph]) -> list[Finding]:
    """Find layers of written graphs whose output channels share one weight scale."""
    places = []
    for graph in graphs:
        for node in graph.file.nodes:
            if operator_of(node).is_integer_layer:
                scale, weights = graph.constant(node, 4), graph.constant(node, 3)
            else:
                dequantizer = weights_dequantizer(graph, node)
                if dequantizer is None:
                    continue
                scale, weights = graph.constant(dequantizer, 1), graph.constant(dequantizer, 0)
            if scale is not None and scale.size == 1 and (weights is None or _output_channels(node, weights) > 1):
                places.append(graph.label(node))
    return found(
        "per-tensor-weights",
        "note",
        places,
        what="all output channels share one weight scale",
        why="One channel with large weights leaves few steps to all others. A scale per channel costs no time on CPU.",
        remedy="If accuracy suffers, quantize per channel (quantize_static: per_channel=True).",
    )


def _output_channels(layer: Node, weights: NDArray[Any]) -> int:
    if weights.ndim < 2:
        return 1
    groups = layer.attributes.get("group", 1) if layer.op_type == "ConvTranspose" else 1
    return int(weights.shape[output_axis(layer)]) * (groups if isinstance(groups, int) else 1)


def dequantized_by_hand(graphs: Sequence[Graph]) -> list[Finding]:
    """Find layers of written graphs whose weights are codes that Cast and Mul convert to float."""
    places = [
        f"{graph.label(node)}: weights {quoted(codes)}, {graph.file.stored_types[codes]}"
        for graph in graphs
        for node in graph.file.nodes
        if operator_of(node).is_float_layer
        and len(node.inputs) > 1
        and (codes := _codes_by_hand(graph, node.inputs[1]))
    ]
    return found(
        "dequantized-by-hand",
        "slow",
        places,
        what="weights are stored as codes, and Cast and Mul make floats of them",
        why="ONNX Runtime computes the floats once, when it loads the file, and multiplies in float: the file is "
        "small, and nothing is faster.",
        remedy="Write DequantizeLinear instead of Cast, Sub and Mul, and quantize activations as well: then layers "
        "fuse to integer kernels.",
    )


def _codes_by_hand(graph: Graph, name: str) -> str:
    """Return the initializer of codes that a tensor of floats is computed from by arithmetic; '' if there is none."""
    cast = False
    for _ in range(_LONGEST_CHAIN):
        if cast and graph.file.stored_types.get(name) in _CODES:
            return name
        producer = graph.producers.get(name)
        if producer is None or producer.op_type not in _BY_HAND or name not in graph.constants:
            return ""
        cast = cast or producer.op_type == "Cast"
        computed = [source for source in producer.inputs if source in graph.producers]
        name = next(iter(computed), producer.inputs[0])
    return ""


def float_weights(executed: Sequence[Graph], written: Sequence[Graph]) -> list[Finding]:
    """Find executed integer layers whose weights are float in the file."""
    stored = {name for graph in written for name in graph.file.stored_types}
    places = [
        graph.label(node)
        for graph in executed
        for node in graph.file.nodes
        if operator_of(node).is_integer_layer
        and len(node.inputs) > 3
        and _MADE_BY_RUNTIME in node.inputs[3]
        and node.inputs[3] not in stored
    ]
    return found(
        "float-weights",
        "inexact",
        places,
        what="ONNX Runtime quantizes float weights itself",
        why="Between quantized activations it rounds float weights to int8, with one scale for the whole tensor: "
        "results are not those of the file's weights, and less exact than with a scale for each channel.",
        remedy="Quantize these weights, too (quantize_static: per_channel=True).",
    )
