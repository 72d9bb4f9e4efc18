"""Findings in the graph that ONNX Runtime executes, after its optimizer.

A *float island* is a connected set of operators that compute in float, whose inputs were codes before and whose results
become codes again. What lies between the input and the first codes, or behind the last, is an end.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass

from qil_deploy.executed_kernels import float_nodes
from qil_deploy.onnx_file import Node

from .findings import Finding, found, label
from .network import MOVES, Network

FLOAT_TYPES = frozenset({"float16", "float32", "float64", "bfloat16"})
_HEAVY = frozenset({"Conv", "ConvTranspose", "FusedConv", "FusedGemm", "FusedMatMul", "Gemm", "MatMul"})
_CONVERSIONS = frozenset({"Cast", "DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})
_INTEGER_TO_FLOAT = frozenset({"DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QGemm"})
# What ONNX Runtime has integer kernels for.
_FUSIBLE = frozenset({"Add", "AveragePool", "Concat", "Conv", "Gemm", "GlobalAveragePool", "MatMul", "Mul"})
# Around float convolutions, which ONNX Runtime computes on blocks of channels.
_REORDERS = frozenset({"ReorderInput", "ReorderOutput"})
_NAMED = 6


@dataclass(frozen=True, kw_only=True)
class FloatPart:
    """A connected set of operators that compute in float.

    Attributes:
        nodes: the operators, in order of execution.
        before: nodes that turn codes into its inputs.
        after: nodes that turn its results into codes.
    """

    nodes: list[Node]
    before: list[Node]
    after: list[Node]


def executed_findings(network: Network) -> list[Finding]:
    """Return what the executed graph of a quantized model tells.

    Args:
        network: the executed graph, with the types of all its tensors.
    """
    parts = list(float_parts(network))
    islands = [part for part in parts if part.before and part.after]
    ends = [part for part in parts if not (part.before and part.after)]
    heavy = [part for part in ends if any(node.op_type in _HEAVY for node in part.nodes)]
    light = [part for part in ends if part not in heavy]
    return [
        *_batch_norms(network),
        *found(
            "float-island",
            "slow",
            [_describe(part) for part in islands],
            what="operators between quantized ones compute in float",
            why="Codes are turned into float32 and back, which moves four times the bytes, and layers in there run "
            "float kernels. Brevitas' W4A4 ResNet-18, whose BatchNorms and additions stay float, takes 49.8 ms instead "
            "of 10.3 ms. Float results may also round to another code on another machine.",
            remedy="Quantize the inputs and the result of each operator, so that it fuses; replace what has no integer "
            "kernel.",
        ),
        *found(
            "float-end",
            "slow",
            [_describe(part) for part in heavy],
            what="layers at an end of the network compute in float",
            why="A convolution or linear layer takes about three times as long in float32 as in int8.",
            remedy="Quantize the first and the last layer, too; 8 bits usually cost no accuracy there.",
        ),
        *found(
            "float-end",
            "note",
            [_describe(part) for part in light],
            what="float operators before the first codes or behind the last",
            why="They are few and cheap, but machines may differ in their last bit.",
            remedy="Nothing, unless results must be equal everywhere: then leave them to the program around the model.",
        ),
        *_unfused(network),
    ]


def float_parts(network: Network) -> Iterator[FloatPart]:
    """Yield the connected sets of operators that compute in float, moves of floats among them not named."""
    in_float = {id(node) for node in float_nodes(network.file)}
    computing = {
        id(node): node for node in network.file.nodes if id(node) in in_float and _computes_in_float(network, node)
    }
    members = computing | {
        id(node): node
        for node in network.file.nodes
        if node.op_type in MOVES and node.outputs and _is_float(network, node.outputs[0])
    }
    order = {id(node): index for index, node in enumerate(network.file.nodes)}
    left = set(computing)
    for start in computing:
        if start not in left:
            continue
        part = _connected(network, members, start)
        left -= part
        yield _part(network, sorted(part, key=order.__getitem__), members, computing)


def _computes_in_float(network: Network, node: Node) -> bool:
    if node.op_type in _CONVERSIONS | _INTEGER_TO_FLOAT | MOVES or network.constants.issuperset(node.outputs):
        return False
    return any(_is_float(network, name) for name in [*network.data_inputs(node), *node.outputs])


def _is_float(network: Network, name: str) -> bool:
    return name not in network.constants and network.types.get(name) in FLOAT_TYPES


def _connected(network: Network, members: dict[int, Node], start: int) -> set[int]:
    """Return all members that float tensors connect with one."""
    part, waiting = {start}, [members[start]]
    while waiting:
        node = waiting.pop()
        sources = [network.producers.get(name) for name in node.inputs if _is_float(network, name)]
        results = [name for name in node.outputs if _is_float(network, name)]
        targets = [reader for name in results for reader in network.readers.get(name, ())]
        for neighbour in (*sources, *targets):
            if neighbour is not None and id(neighbour) in members and id(neighbour) not in part:
                part.add(id(neighbour))
                waiting.append(neighbour)
    return part


def _part(network: Network, part: list[int], members: dict[int, Node], computing: dict[int, Node]) -> FloatPart:
    before: dict[int, Node] = {}
    after: dict[int, Node] = {}
    for node in (members[index] for index in part):
        for name in network.data_inputs(node):
            producer = network.producers.get(name)
            if producer is not None and id(producer) not in members and _is_float(network, name):
                before[id(producer)] = producer
        for name in node.outputs:
            for reader in network.readers.get(name, ()):
                if id(reader) not in members and _makes_codes(network, reader):
                    after[id(reader)] = reader
    named = [computing[index] for index in part if index in computing]
    return FloatPart(nodes=named, before=list(before.values()), after=list(after.values()))


def _makes_codes(network: Network, node: Node) -> bool:
    if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul"):
        return True
    return node.op_type == "Cast" and network.types.get(node.outputs[0]) in ("uint8", "int8", "int32")


def _describe(part: FloatPart) -> str:
    before = _names(part.before, 2) or "the input"
    after = _names(part.after, 2) or "the output"
    return f"{_names(part.nodes, _NAMED)}, between {before} and {after}"


def _names(nodes: list[Node], most: int) -> str:
    more = f" and {len(nodes) - most} more" if len(nodes) > most else ""
    return ", ".join(map(label, nodes[:most])) + more


def _batch_norms(network: Network) -> list[Finding]:
    places = []
    for node in network.file.nodes:
        if node.op_type == "BatchNormalization":
            source = network.source(node.inputs[0])
            places.append(f"{label(node)} after {label(source) if source else 'the input'}")
    return found(
        "batchnorm",
        "slow",
        places,
        what="BatchNorm is executed as an operator of its own",
        why="It keeps the layer before it in float: nothing fuses to an integer convolution.",
        remedy="Fold BatchNorm into the layer's scales and bias before quantizing or exporting (quant_pre_process of "
        "ONNX Runtime folds it in a float model), in training with simulated quantization, too.",
    )


def _unfused(network: Network) -> list[Finding]:
    places = []
    for node in network.file.nodes:
        sources = [network.source(name, _REORDERS) for name in network.data_inputs(node)]
        dequantized = [source for source in sources if source is not None and source.op_type == "DequantizeLinear"]
        if node.op_type in _FUSIBLE and dequantized and _is_float(network, node.outputs[0]):
            places.append(f"{label(node)}: {_reason(network, node, len(dequantized) == len(sources))}")
    return found(
        "qdq-unfused",
        "slow",
        places,
        what="operators that read dequantized codes were not fused to integer kernels",
        why="ONNX Runtime fuses an operator only where DequantizeLinear feeds every input and QuantizeLinear alone "
        "reads the result; otherwise it dequantizes and computes in float.",
        remedy="Change what stands behind each colon; `quantize_static` places QDQ pairs that fuse.",
    )


def _reason(network: Network, node: Node, all_dequantized: bool) -> str:
    """Say why an operator was not fused, as far as its neighbours tell."""
    if not all_dequantized:
        return "one of its inputs is float"
    weighted = node.op_type in ("Conv", "Gemm") and len(node.inputs) > 1
    if weighted and (reason := _weights_reason(network, node)):
        return reason
    readers = _readers(network, node.outputs[0])
    others = [reader for reader in readers if reader.op_type != "QuantizeLinear"]
    if others:
        return f"its result goes to {label(others[0])}, not to QuantizeLinear"
    if not readers:
        return "its result is an output of the model, not quantized"
    if len(readers) > 1:
        return f"{len(readers)} QuantizeLinear read its result, where one may"
    return _types_reason(network, node, readers[0])


def _readers(network: Network, name: str) -> list[Node]:
    """Return the nodes that read a tensor, looking through changes of its layout in memory."""
    readers = network.readers.get(name, [])
    if len(readers) == 1 and readers[0].op_type in _REORDERS:
        return network.readers.get(readers[0].outputs[0], [])
    return readers


def _types_reason(network: Network, node: Node, quantizer: Node) -> str:
    """Say whether codes of different types keep an operator in float."""
    sources = [network.source(name, _REORDERS) for name in network.data_inputs(node)]
    data = [source.inputs[0] for source in sources if source is not None]
    made = network.types.get(quantizer.outputs[0], "")
    read = sorted({network.types.get(name, "") for name in data} - {made})
    if made and read:
        return f"it reads {read[0]} codes and makes {made} ones, where all must be of one type"
    if made == "int8":
        return f"it reads and makes int8 codes, which are not fused on {platform.machine()}"
    return "its scales or zero points do not suit the integer kernel"


def _weights_reason(network: Network, node: Node) -> str:
    """Say what is wrong with the weights or the bias of a layer; '' if nothing is seen."""
    weights = network.source(node.inputs[1], frozenset())
    if weights is None or weights.op_type != "DequantizeLinear":
        return "its weights are float" if weights is None else f"its weights come from {label(weights)}"
    if (bits := network.file.stored_types.get(weights.inputs[0], "")) in ("int4", "uint4", "int2", "uint2"):
        return f"its weights are {bits} (put Cast to int8 before DequantizeLinear)"
    if weights.inputs[0] in network.producers:
        return f"its weights pass through {label(network.producers[weights.inputs[0]])} before DequantizeLinear"
    return ""
