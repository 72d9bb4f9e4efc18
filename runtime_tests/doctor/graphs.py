"""A graph with its edges: producers and readers of tensors, and constants."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from qil_deploy.onnx_io import Array, Node, OnnxFile
from qil_deploy.reference import Effect, names_of

from .findings import label

FLOAT_TYPES = frozenset({"float16", "float32", "float64", "bfloat16"})
# Operators that pass elements on unchanged. A hostile file may have cycles of them.
MOVES = names_of(Effect.MOVES, Effect.LAYOUT)
_LONGEST_WALK = 16


@dataclass(frozen=True)
class Graph:
    """A graph with its edges.

    Attributes:
        file: nodes and initializers; of a subgraph, with what it takes from the graphs around it as initializers and
            inputs.
        producers: the node that makes a tensor.
        readers: the nodes that read a tensor.
        constants: names of all tensors that are the same for every input.
        types: element type of tensors, by numpy's name, where it is known.
        shapes: of tensors, where they are known.
        place: of a subgraph or function, its place in the file, to be put before a node's label; '' for
            the main graph.
        overridable: initializers that are inputs as well, so that a caller may give others.
    """

    file: OnnxFile
    producers: dict[str, Node]
    readers: dict[str, list[Node]]
    constants: frozenset[str]
    types: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, Sequence[int | str | None]] = field(default_factory=dict)
    place: str = ""
    overridable: frozenset[str] = frozenset()

    def label(self, node: Node) -> str:
        """Return a node's operator and name, and the subgraph that contains it."""
        return f"{self.place}{label(node)}"

    def data_inputs(self, node: Node) -> list[str]:
        """Return the names of a node's inputs that are not constant."""
        return [name for name in node.inputs if name and name not in self.constants]

    def stored(self, name: str) -> Array | None:
        """Return the value of a tensor stored in the file as an initializer or a Constant."""
        if name in self.file.initializers:
            return self.file.initializers[name]
        producer = self.producers.get(name)
        value = producer.attributes.get("value") if producer is not None and producer.op_type == "Constant" else None
        return value if isinstance(value, np.ndarray) else None

    def constant(self, node: Node, index: int) -> Array | None:
        """Return the value of a node's input, if it is stored in the file."""
        return self.stored(node.inputs[index]) if index < len(node.inputs) else None

    def scalars(self, node: Node, indices: Sequence[int]) -> list[float] | None:
        """Return the values of inputs that are single finite numbers; None unless all of them are."""
        values = [self.constant(node, index) for index in indices]
        numbers = [float(value.ravel()[0]) for value in values if value is not None and value.size == 1]
        return numbers if len(numbers) == len(values) and all(map(math.isfinite, numbers)) else None

    def source(self, name: str, through: frozenset[str] = MOVES) -> Node | None:
        """Return the node that makes a tensor, past operators in `through`; None for inputs and constants."""
        for _ in range(_LONGEST_WALK):
            producer = self.producers.get(name)
            if producer is None or producer.op_type not in through or not producer.inputs:
                return producer
            name = producer.inputs[0]
        return None

    def is_float(self, name: str) -> bool:
        """Whether a tensor holds floats that depend on the input."""
        return name not in self.constants and self.types.get(name) in FLOAT_TYPES

    def type_of(self, name: str) -> str:
        """Return the element type of a tensor, for a stored one as stored, or ''."""
        if (stored := self.file.stored_types.get(name)) is not None:
            return stored
        value = self.stored(name)
        return str(value.dtype) if value is not None else self.types.get(name, "")

    def shape_of(self, name: str) -> Sequence[int | str | None] | None:
        """Return the shape of a tensor, if known."""
        value = self.stored(name)
        return value.shape if value is not None else self.shapes.get(name)


def link(
    file: OnnxFile,
    *,
    types: Mapping[str, str] | None = None,
    shapes: Mapping[str, Sequence[int | str | None]] | None = None,
    place: str = "",
    overridable: frozenset[str] = frozenset(),
) -> Graph:
    """Find the edges of a graph; other arguments are those of `Graph`."""
    producers = {output: node for node in file.nodes for output in node.outputs if output}
    readers: dict[str, list[Node]] = defaultdict(list)
    constants = set(file.stored_types)
    for node in file.nodes:
        names = [name for name in node.inputs if name]
        for name in dict.fromkeys(names):
            readers[name].append(node)
        if node.op_type == "Constant" or (names and constants.issuperset(names)):
            constants.update(name for name in node.outputs if name)
    return Graph(file, producers, dict(readers), frozenset(constants), types or {}, shapes or {}, place, overridable)
