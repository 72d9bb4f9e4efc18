"""The smallest and largest code that a node can make of codes in known ranges."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qil_deploy.onnx_io import Node

from .operator_row import Effect
from .operators import effect_of

Range = tuple[int, int]

_KEEPING = frozenset({Effect.MOVES, Effect.LAYOUT, Effect.CHOOSES, Effect.JOINS, Effect.BOUNDS})


def range_of_result(
    node: Node, inputs: Sequence[Range], whole: Range, constant: Callable[[int], float | None]
) -> Range:
    """Return the smallest and largest code that a node can make.

    Args:
        node: makes codes.
        inputs: the ranges of the codes that it reads.
        whole: of its result's type.
        constant: returns an input of the node that is one number; None where it is left out, or not known.
    """
    if effect_of(node) not in _KEEPING or not inputs or _overshoots(node):
        return whole
    low, high = min(codes[0] for codes in inputs), max(codes[1] for codes in inputs)
    if node.op_type == "Clip":
        bounds = constant(1), constant(2)
        return (
            low if bounds[0] is None else max(low, int(bounds[0])),
            high if bounds[1] is None else min(high, int(bounds[1])),
        )
    if node.op_type == "Pad" and node.attributes.get("mode", "constant") == "constant":
        value = int(constant(2) or 0)
        return min(low, value), max(high, value)
    return low, high


def _overshoots(node: Node) -> bool:
    """Whether results may lie outside of what is read: those of cubic interpolation, and the zero of a ReLU."""
    return node.op_type == "Relu" or (node.op_type == "Resize" and node.attributes.get("mode") == "cubic")
