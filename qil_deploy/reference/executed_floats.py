"""Float computations in the graph that ONNX Runtime executes, and the parts of the network they belong to.

`float_nodes` goes by what every tensor holds. ONNX Runtime's kernels for integers take and return codes, and need no
check. Around them, four kinds of float tensors are allowed:

    image       the network's input, which only QuantizeLinear may read; Mul and Add of constants may make pixels of it
                first, whole numbers but for float32's rounding
    exact       integers in float32, below 2**24: Cast of codes, moves of them, MatMulNBits (certificate line `matmul`)
    scaled      an exact integer times a constant, rounded once, as QLinearConv and QGemm do inside: QuantizeLinear may
                read it, and it may be the logits
    logits      what DequantizeLinear returns: nothing but moves may follow

Every other operator that reads or makes a float tensor computes in float, and so do those on codes that approximate a
function or round a product (QLinearSigmoid, QLinearMul, which ONNX Runtime makes from what is kept in float). Moves and
quantizers after it do not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum, auto
from pathlib import Path

from qil_deploy.onnx_io import DATA_TYPES, Node, OnnxFile, is_inside, kept_parts, optimized_model

from .operator_lookup import effect_of, operator_of
from .operator_row import Effect

# Suffixes that ONNX Runtime adds to names of nodes whose layout it changes.
_SUFFIX = re.compile(r"(_nchwc|_token_\d+)$")


class Content(Enum):
    """Content of a tensor."""

    CONSTANT = auto()
    CODES = auto()
    IMAGE = auto()
    EXACT = auto()
    SCALED = auto()
    LOGITS = auto()
    FLOAT = auto()


_CODES = frozenset({Content.CODES})


def float_kernels(path: Path) -> list[tuple[str, str]]:
    """Return (operator, node name) of the float computations in `optimized_model` (module docstring)."""
    return [(node.op_type, node.name) for node in float_nodes(optimized_model(path))]


def float_nodes(graph: OnnxFile) -> list[Node]:
    """Return the nodes of an optimized graph that compute in float (module docstring)."""
    return list(_float_nodes(graph))


def _float_nodes(graph: OnnxFile) -> Iterator[Node]:
    contents = dict.fromkeys(graph.stored_types, Content.CONSTANT)
    for image in graph.inputs:
        contents[image.name] = Content.CODES if image.dtype == "uint8" else Content.IMAGE
    for node in graph.nodes:
        inputs = [contents.get(name, Content.FLOAT) for name in node.inputs if name]
        found = _result(node, inputs)
        # However they were made, the results of these are codes.
        contents.update(dict.fromkeys(node.outputs, Content.CODES if _makes_codes(node) else found))
        if found is Content.FLOAT and not (effect_of(node) is Effect.MOVES and Content.FLOAT in inputs):
            yield node


def _result(node: Node, inputs: list[Content]) -> Content:
    """Return the content of an operator's result for inputs of given contents; FLOAT if it computes in float."""
    data = frozenset(inputs) - {Content.CONSTANT}
    if not data:
        return Content.CONSTANT
    if operator_of(node).exact and data == _CODES:
        return Content.CODES
    if effect_of(node) is Effect.MOVES and len(data) == 1 and data != {Content.IMAGE}:
        return next(iter(data))
    if node.op_type == "QGemm" and data == _CODES:
        return Content.CODES if _makes_codes(node) else Content.SCALED
    if effect_of(node) is Effect.CASTS:
        return _cast(node, data)
    return _AROUND_INTEGERS.get((node.op_type, data), Content.FLOAT)


def _cast(node: Node, data: frozenset[Content]) -> Content:
    to = node.attributes.get("to", 0)
    name = DATA_TYPES[to][0] if isinstance(to, int) and to in DATA_TYPES else ""
    is_integer = name.startswith(("int", "uint"))
    if data <= {Content.CODES, Content.EXACT}:
        return Content.CODES if is_integer else Content.EXACT
    return Content.FLOAT


_AROUND_INTEGERS = {
    ("Mul", frozenset({Content.IMAGE})): Content.IMAGE,
    ("Add", frozenset({Content.IMAGE})): Content.IMAGE,
    ("QuantizeLinear", frozenset({Content.IMAGE})): Content.CODES,
    ("QuantizeLinear", frozenset({Content.SCALED})): Content.CODES,
    ("QuantizeLinear", frozenset({Content.FLOAT})): Content.CODES,
    ("MatMulNBits", frozenset({Content.EXACT})): Content.EXACT,
    ("Mul", frozenset({Content.EXACT})): Content.SCALED,
    ("DequantizeLinear", _CODES): Content.LOGITS,
}


def parts_of_executed(executed: OnnxFile, model: OnnxFile) -> dict[str, str]:
    """Map every node that ONNX Runtime executes to its part of the network, by the node's first output.

    ONNX Runtime fuses nodes, splits them and gives them new names or none. A node belongs to a part if it, its result
    or a float that it reads has its name; a node whose name the file lacks belongs to the part that its floats come
    from or go to.

    Args:
        executed: the optimized graph.
        model: the file.
    """
    kept = kept_parts(model)
    outside = {node.name for node in model.nodes} - {""}
    parts: dict[str, str] = {}
    open_nodes: list[Node] = []
    for node in executed.nodes:
        own = next((part for part in kept for name in (node.name, *node.outputs) if is_inside(part, name)), None)
        if own is not None:
            parts[node.outputs[0]] = own
        elif _SUFFIX.sub("", node.name) not in outside:
            open_nodes.append(node)
    producers = {output: node for node in executed.nodes for output in node.outputs}
    floats = [
        (producers[name].outputs[0], node.outputs[0])
        for node in executed.nodes
        if node.op_type != "DequantizeLinear" and not _reads_codes(node)
        for name in node.inputs
        if name in producers and not _makes_codes(producers[name])
    ]
    unnamed = {node.outputs[0] for node in open_nodes}
    count = -1
    while count != len(parts):
        count = len(parts)
        for ends in (*floats, *((reader, maker) for maker, reader in floats)):
            if ends[0] in parts and ends[1] in unnamed:
                parts.setdefault(ends[1], parts[ends[0]])
    return parts


def _makes_codes(node: Node) -> bool:
    return effect_of(node) is Effect.QUANTIZES


def _reads_codes(node: Node) -> bool:
    """Whether an operator maps codes to codes."""
    return _makes_codes(node) and node.op_type != "QuantizeLinear"
