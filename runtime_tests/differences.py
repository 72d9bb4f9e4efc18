"""Find the first node in order of execution at which two backends compute different codes.

Everything before that node is equal, so the fault is in it: in its constants or in how it is computed. Where one of the
two does not have every tensor (a layer's codes before they are clipped, say), several nodes lie between the tensor that
differs and the last one compared; then it is the layer among them, or the operator that does more than move and clip.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from qil_deploy.onnx_io import Node
from qil_deploy.reference import Effect, effect_of

from .backends import ExecutedGraph
from .compare_tensors import TensorDifference, compare_tensors

_MOVES_OR_CLIPS = frozenset({Effect.MOVES, Effect.CHOOSES, Effect.BOUNDS})
_SEPARATORS = "_./"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first tensor that differs, and the node responsible.

    Attributes:
        node: its name in the ONNX file.
        operator: what it computes.
        layer: the network's layer that it belongs to, by the file's metadata; None for an operation between layers.
        tensor: the name of the tensor that differs.
        differing: how many of its elements do; all where shape or type differ.
        elements: how many it has.
        largest_step: largest difference, in codes (or logits); None where there is no such number: another shape or
            type, NaN or infinity.
        indices: positions of the first elements that differ, the image's index in the data set first.
    """

    node: str
    operator: str
    layer: str | None
    tensor: str
    differing: int
    elements: int
    largest_step: float | None
    indices: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two backends compared tensor by tensor on a few images.

    Attributes:
        between: their names.
        images: indices of the images in the data set.
        tensors: how many tensors both have; 1 means their logits alone.
        difference: None if all these tensors are equal.
    """

    between: tuple[str, str]
    images: tuple[int, ...]
    tensors: int
    difference: Difference | None


class CodeComparison:
    """Compares two backends' tensors in order of execution, for any number of images at a time.

    Args:
        graph: what is executed.
        between: names of the backends.
    """

    def __init__(self, graph: ExecutedGraph, between: tuple[str, str]) -> None:
        self._graph = graph
        self._between = between
        self._images: list[int] = []
        self._found: dict[str, TensorDifference] = {}

    def add(self, first: Mapping[str, NDArray[Any]], second: Mapping[str, NDArray[Any]], images: Sequence[int]) -> None:
        """Compare the tensors of some more images.

        Args:
            first, second: of each backend, by their names in the graph, [N, ...].
            images: what the N images are called, such as their indices in a data set.
        """
        self._images += images
        for name in self._graph.codes:
            if name in first and name in second:
                found = compare_tensors(second[name], first[name], images)
                self._found[name] = self._found[name] + found if name in self._found else found

    def result(self) -> Comparison:
        """Return the result: the first tensor that differs."""
        wrong = next((name for name in self._graph.codes if name in self._found and self._found[name].differing), None)
        return Comparison(
            between=self._between,
            images=tuple(self._images),
            tensors=len(self._found),
            difference=None if wrong is None else self._difference(wrong),
        )

    def _difference(self, name: str) -> Difference:
        node, found = _node_to_blame(self._graph, self._found.keys(), name), self._found[name]
        return Difference(
            node=node.name or node.outputs[0],
            operator=node.op_type,
            layer=_layer_of(self._graph, node),
            tensor=name,
            differing=found.differing,
            elements=found.elements,
            largest_step=found.largest_step if found.measured else None,
            indices=found.indices,
        )


def compare_codes(
    graph: ExecutedGraph,
    between: tuple[str, str],
    tensors: tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]],
    images: Sequence[int],
) -> Comparison:
    """Compare two backends' tensors of the same images in order of execution, up to the first that differs.

    Args:
        graph: what is executed.
        between: names of the backends.
        tensors: of each, by their names in the graph, [N, ...].
        images: what the N images are called, such as their indices in a data set.
    """
    comparison = CodeComparison(graph, between)
    comparison.add(*tensors, images)
    return comparison.result()


def describe_difference(comparison: Comparison) -> str:
    """Describe the result of a comparison in sentences."""
    first, second = comparison.between
    found = comparison.difference
    images = f"{len(comparison.images)} image{'' if len(comparison.images) == 1 else 's'}"
    only = " Only logits could be compared: one of the two has no codes to show." if comparison.tensors == 1 else ""
    if found is None:
        return f"No difference between {first} and {second} in {comparison.tensors} tensors of {images}.{only}"
    layer = "" if found.layer in (None, found.node) else f" of layer {found.layer}"
    step = "" if found.largest_step is None else f", by {found.largest_step:g} at most"
    where = f", first at {', '.join(str(list(index)) for index in found.indices)}" if found.indices else ""
    return (
        f"First difference between {first} and {second}: node {found.node} ({found.operator}){layer}, "
        f"{found.differing:,} of {found.elements:,} elements of {found.tensor} in {images}{step}{where}.{only}"
    )


def _node_to_blame(graph: ExecutedGraph, shared: Collection[str], tensor: str) -> Node:
    """Return the layer among the nodes since the last compared tensor, else the first that not only moves codes."""
    producers = {output: node for node in graph.nodes for output in node.outputs}
    chain = [producers[tensor]]
    while chain[-1].inputs[0] not in shared and chain[-1].inputs[0] in producers:
        chain.append(producers[chain[-1].inputs[0]])
    layers = [node for node in chain if node.name in graph.layers]
    computing = [node for node in chain if effect_of(node) not in _MOVES_OR_CLIPS]
    return layers[-1] if layers else [*computing, chain[-1]][0]


def _layer_of(graph: ExecutedGraph, node: Node) -> str | None:
    """Return the layer whose name is the node's, or its beginning."""
    matching = [
        layer
        for layer in graph.layers
        if node.name == layer or (node.name.startswith(layer) and node.name[len(layer)] in _SEPARATORS)
    ]
    return max(matching, key=len, default=None)
