"""Findings about float computations in the graph that ONNX Runtime executes, after its optimizer.

A *float island* is a connected set of operators that compute in float, whose inputs were codes before and whose results
become codes again. What lies before the first codes, or after the last, is an end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qil_deploy.onnx_io import Node
from qil_deploy.reference import float_nodes, operator_of

from .findings import Finding, found, label
from .graphs import FLOAT_TYPES, MOVES, Graph

_CONVERSIONS = frozenset({"Cast", "DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})
_INTEGER_TO_FLOAT = frozenset({"DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QGemm"})
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})  # the graphs inside them are examined
_NAMED = 6


@dataclass(frozen=True, kw_only=True)
class FloatPart:
    """A connected set of operators that compute in float.

    Attributes:
        place: of the graph that they are in.
        nodes: the operators, in order of execution.
        before: nodes that turn codes into its inputs.
        after: nodes that turn its results into codes.
    """

    place: str
    nodes: list[Node]
    before: list[Node]
    after: list[Node]

    @property
    def has_layers(self) -> bool:
        """Whether there are layers with weights among the operators."""
        return any(operator_of(node).is_float_layer for node in self.nodes)

    @property
    def is_island(self) -> bool:
        """Whether it lies between codes; a layer in a branch or a loop is not at the network's end, either."""
        return bool(self.before and self.after) or (bool(self.place) and self.has_layers)


def float_findings(graphs: Sequence[Graph]) -> list[Finding]:
    """Find float computations in the executed graphs of a quantized model, given the types of their tensors."""
    parts = [part for graph in graphs for part in float_parts(graph)]
    islands = [part for part in parts if part.is_island]
    heavy = [part for part in parts if part.has_layers and not part.is_island]
    light = [part for part in parts if not (part.has_layers or part.is_island)]
    return [
        *_batch_norms(graphs),
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
            what="float operators before the first codes or after the last",
            why="They are few and cheap, but machines may differ in their last bit.",
            remedy="Nothing, unless results must be equal everywhere: then leave them to the program around the model.",
        ),
    ]


def float_parts(graph: Graph) -> Iterator[FloatPart]:
    """Yield the connected sets of operators that compute in float, moves of floats among them not named."""
    in_float = {id(node) for node in float_nodes(graph.file)}
    computing = {
        id(node): node for node in graph.file.nodes if id(node) in in_float and _computes_in_float(graph, node)
    }
    members = computing | {id(node): node for node in graph.file.nodes if _moves_floats(graph, node)}
    order = {id(node): index for index, node in enumerate(graph.file.nodes)}
    left = set(computing)
    for start in computing:
        if start not in left:
            continue
        part = _connected(graph, members, start)
        left -= part
        yield _part(graph, sorted(part, key=order.__getitem__), members, computing)


def _moves_floats(graph: Graph, node: Node) -> bool:
    """Whether a node only passes floats on, possibly with another width."""
    if not node.outputs or not graph.is_float(node.outputs[0]):
        return False
    is_cast = node.op_type == "Cast" and bool(node.inputs) and graph.types.get(node.inputs[0]) in FLOAT_TYPES
    return is_cast or node.op_type in MOVES


def _computes_in_float(graph: Graph, node: Node) -> bool:
    if node.op_type in _CONVERSIONS | _INTEGER_TO_FLOAT | _CONTROL_FLOW | MOVES or graph.constants.issuperset(
        node.outputs
    ):
        return False
    return any(graph.is_float(name) for name in [*graph.data_inputs(node), *node.outputs])


def _connected(graph: Graph, members: dict[int, Node], start: int) -> set[int]:
    """Return all members connected with one by float tensors."""
    part, waiting = {start}, [members[start]]
    while waiting:
        node = waiting.pop()
        sources = [graph.producers.get(name) for name in node.inputs if graph.is_float(name)]
        results = [name for name in node.outputs if graph.is_float(name)]
        targets = [reader for name in results for reader in graph.readers.get(name, ())]
        for neighbour in (*sources, *targets):
            if neighbour is not None and id(neighbour) in members and id(neighbour) not in part:
                part.add(id(neighbour))
                waiting.append(neighbour)
    return part


def _part(graph: Graph, part: list[int], members: dict[int, Node], computing: dict[int, Node]) -> FloatPart:
    before: dict[int, Node] = {}
    after: dict[int, Node] = {}
    for node in (members[index] for index in part):
        for name in graph.data_inputs(node):
            producer = graph.producers.get(name)
            if producer is not None and id(producer) not in members and graph.is_float(name):
                before[id(producer)] = producer
        for name in node.outputs:
            for reader in graph.readers.get(name, ()):
                if id(reader) not in members and _makes_codes(graph, reader):
                    after[id(reader)] = reader
    named = [computing[index] for index in part if index in computing]
    return FloatPart(place=graph.place, nodes=named, before=list(before.values()), after=list(after.values()))


def _makes_codes(graph: Graph, node: Node) -> bool:
    if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul"):
        return True
    return node.op_type == "Cast" and graph.types.get(node.outputs[0]) in ("uint8", "int8", "int32")


def _describe(part: FloatPart) -> str:
    before = _names(part.before, 2) or "the input"
    after = _names(part.after, 2) or "the output"
    return f"{part.place}{_names(part.nodes, _NAMED)}, between {before} and {after}"


def _names(nodes: list[Node], most: int) -> str:
    more = f" and {len(nodes) - most} more" if len(nodes) > most else ""
    return ", ".join(map(label, nodes[:most])) + more


def _batch_norms(graphs: Sequence[Graph]) -> list[Finding]:
    places = []
    for graph in graphs:
        for node in graph.file.nodes:
            if node.op_type == "BatchNormalization" and node.inputs:
                source = graph.source(node.inputs[0])
                places.append(f"{graph.label(node)} after {label(source) if source else 'the input'}")
    return found(
        "batchnorm",
        "slow",
        places,
        what="BatchNorm is executed as an operator of its own",
        why="It keeps the layer before it in float: nothing fuses to an integer convolution.",
        remedy="Fold BatchNorm into the layer's scales and bias before quantizing or exporting (quant_pre_process of "
        "ONNX Runtime folds it in a float model), in training with simulated quantization, too.",
    )
