"""The smallest and largest code that a node can make from codes in known ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from qil_deploy.onnx_io import KERNEL_CONVOLUTIONS, LOW_BIT_RESCALE, Array, Node

from .operator_lookup import effect_of
from .operator_row import Effect

Range = tuple[int, int]

# Index of the lower limit of a Clip within an operator among its inputs; the upper one follows it.
_LIMITS = {**dict.fromkeys(KERNEL_CONVOLUTIONS, 9), LOW_BIT_RESCALE: 8}
_KEEPING = frozenset({Effect.MOVES, Effect.LAYOUT, Effect.CHOOSES, Effect.JOINS, Effect.BOUNDS})


def largest_codes(nodes: Iterable[Node], constants: Mapping[str, Array]) -> dict[str, int]:
    """Return the largest code of every tensor that a node of an integer graph makes; other tensors reach 255.

    Raises:
        ValueError: a limit or filling is computed from the images.
    """
    largest: dict[str, int] = {}
    for node in nodes:
        joined = node.inputs if effect_of(node) is Effect.JOINS else node.inputs[:1]
        read = [(0, largest.get(name, 255)) for name in joined]
        _, largest[node.outputs[0]] = range_of_result(node, read, (0, 255), partial(_number, node, constants))
    return largest


def _number(node: Node, constants: Mapping[str, Array], index: int) -> float | None:
    """Return a constant input of a node; None if it is left out."""
    name = node.inputs[index] if index < len(node.inputs) else ""
    if not name:
        return None
    if name not in constants or constants[name].size != 1:
        raise ValueError(f"input {index} of {node.name!r} is not one constant number")
    return float(constants[name].item())


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
    if node.op_type in _LIMITS:  # it ends with a Clip of its own
        bounds = constant(_LIMITS[node.op_type]), constant(_LIMITS[node.op_type] + 1)
        return whole[0] if bounds[0] is None else int(bounds[0]), whole[1] if bounds[1] is None else int(bounds[1])
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
    """Whether results may lie outside the range of the inputs: those of cubic interpolation, and the zero of a ReLU."""
    return node.op_type == "Relu" or (node.op_type == "Resize" and node.attributes.get("mode") == "cubic")
