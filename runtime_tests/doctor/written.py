"""Findings in the graph as the file holds it."""

from __future__ import annotations

from collections.abc import Iterator

from qil_deploy.onnx_file import Node

from .findings import Finding, found, label
from .network import MOVES, Network

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_INTEGER_LAYERS = frozenset({"QLinearConv", "QGemm", "QLinearMatMul"})
_DYNAMIC = frozenset(
    {"DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}
)
_PASSED = MOVES | {"Clip", "MaxPool", "Relu"}


def written_findings(network: Network, *, loads: bool) -> list[Finding]:
    """Return what the graph as it is written tells.

    Args:
        network: the graph of the file.
        loads: whether ONNX Runtime loads the file.
    """
    return [
        *_packed_weights(network, loads=loads),
        *_signed_activations(network),
        *_dynamic(network),
        *_one_scale(network),
    ]


def quantizers(network: Network) -> list[Node]:
    """Return every node that makes, reads or multiplies codes."""
    return [
        node
        for node in network.file.nodes
        if node.op_type in _DYNAMIC
        or node.op_type in ("QuantizeLinear", "DequantizeLinear", "QGemm", "MatMulNBits", "MatMulIntegerToFloat")
        or node.op_type.startswith("QLinear")
    ]


def _packed_weights(network: Network, *, loads: bool) -> Iterator[Finding]:
    """Find DequantizeLinear straight on packed weights of convolutions and linear layers."""
    places: dict[str, list[str]] = {"4": [], "2": []}
    for node in network.file.nodes:
        weights = _weights_dequantizer(network, node)
        if weights is not None and node.op_type != "MatMul":
            stored = network.file.stored_types.get(weights.inputs[0], "")
            if stored in ("int4", "uint4", "int2", "uint2"):
                places[stored[-1]].append(f"{label(weights)} before {label(node)}")
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
        why="ONNX Runtime's optimizer builds an invalid QLinearConv of it, and the file does not load.",
        remedy=remedy,
    )


def _weights_dequantizer(network: Network, node: Node) -> Node | None:
    """Return the DequantizeLinear of constant codes that a layer's weights come from."""
    if node.op_type not in _LAYERS or len(node.inputs) < 2:
        return None
    source = network.source(node.inputs[1])
    if source is None or source.op_type != "DequantizeLinear" or not source.inputs:
        return None
    return source if source.outputs[0] in network.constants else None


def _signed_activations(network: Network) -> list[Finding]:
    """Find layers that read int8 codes."""
    places = []
    for node in network.file.nodes:
        if node.op_type in _INTEGER_LAYERS:
            zero_point = node.inputs[2] if len(node.inputs) > 2 else ""
        elif node.op_type in _LAYERS and node.inputs:
            source = network.source(node.inputs[0], _PASSED)
            if source is None or source.op_type != "DequantizeLinear" or source.outputs[0] in network.constants:
                continue
            zero_point = source.inputs[2] if len(source.inputs) > 2 else ""
        else:
            continue
        if _stored_type(network, zero_point) == "int8":
            places.append(label(node))
    return found(
        "s8s8",
        "slow",
        places,
        what="activations are int8 (S8S8)",
        why="On x86 ONNX Runtime does not fuse convolutions of int8 codes (QDQ), or runs slow kernels (QOperator): "
        "ResNet-18 takes 10 ms with uint8 activations, 30 ms with int8 ones as QDQ and 187 ms as QOperator.",
        remedy="Quantize activations to uint8 and weights to int8 "
        "(quantize_static: activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8).",
    )


def _stored_type(network: Network, name: str) -> str:
    if name in network.file.stored_types:
        return network.file.stored_types[name]
    producer = network.producers.get(name)
    value = producer.attributes.get("value") if producer is not None and producer.op_type == "Constant" else None
    return str(getattr(value, "dtype", ""))


def _dynamic(network: Network) -> list[Finding]:
    """Find what quantizes with scales that are measured on each input."""
    return found(
        "dynamic-quantization",
        "slow",
        [label(node) for node in network.file.nodes if node.op_type in _DYNAMIC],
        what="activations are quantized dynamically",
        why="Scales are measured anew on every run, sums go through float between layers, and what an image gives "
        "depends on the images that it shares a batch with.",
        remedy="Quantize statically, with scales from calibration (quantize_static) or training.",
    )


def _one_scale(network: Network) -> list[Finding]:
    """Find layers whose output channels share one weight scale."""
    places = []
    for node in network.file.nodes:
        if node.op_type in _INTEGER_LAYERS:
            scale, weights = network.constant(node, 4), network.constant(node, 3)
        else:
            dequantizer = _weights_dequantizer(network, node)
            if dequantizer is None:
                continue
            scale, weights = network.constant(dequantizer, 1), network.constant(dequantizer, 0)
        if scale is not None and scale.size == 1 and (weights is None or max(weights.shape, default=1) > 1):
            places.append(label(node))
    return found(
        "per-tensor-weights",
        "note",
        places,
        what="all output channels share one weight scale",
        why="One channel with large weights leaves few steps to all others. A scale per channel costs no time on CPU.",
        remedy="If accuracy suffers, quantize per channel (quantize_static: per_channel=True).",
    )
