"""A reason why ONNX Runtime did not fuse an operator, and helpers for finding reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qil_deploy.onnx_io import Node
from qil_deploy.reference import Effect, names_of

from .graphs import Graph

EIGHT_BITS: Final = frozenset({"int8", "uint8"})
ONE_TYPE: Final = "Quantize all activations to uint8 (quantize_static: activation_type=QuantType.QUInt8)."
# Around float convolutions, which ONNX Runtime computes on blocks of channels; and around float16.
CASTS: Final = names_of(Effect.CASTS, Effect.LAYOUT)


@dataclass(frozen=True)
class Reason:
    """Reason why an operator was not fused, and a remedy."""

    text: str
    remedy: str


def dequantizes(node: Node | None) -> bool:
    """Whether a node is a DequantizeLinear."""
    return node is not None and node.op_type == "DequantizeLinear" and len(node.inputs) > 1


def readers(graph: Graph, name: str) -> list[Node]:
    """Return the nodes that read a tensor, past changes of its layout in memory and of its width."""
    found = graph.readers.get(name, [])
    if len(found) == 1 and found[0].op_type in CASTS and graph.is_float(found[0].outputs[0]):
        return graph.readers.get(found[0].outputs[0], [])
    return found


def many_scales(graph: Graph, node: Node, what: str) -> Reason | None:
    """Return the reason that activations have more than one scale, if they do."""
    scale = graph.constant(node, 1)
    if scale is None or scale.size == 1:
        return None
    return Reason(
        f"its {what} has {scale.size} scales",
        "Quantize activations with one scale for the whole tensor: integer kernels take no others.",
    )


def wide_codes(text: str) -> Reason:
    """Return the reason that codes have more than 8 bits."""
    return Reason(
        text,
        "Use 8 bits: ONNX Runtime has no integer kernels for layers of other codes on CPU, and computes them in float.",
    )


def overridable(what: str) -> Reason:
    """Return the reason that something can be replaced by the caller."""
    return Reason(
        f"{what} is an initializer that is an input of the model as well",
        "Take initializers out of the inputs of the graph: a caller may replace what is an input, so that it is no "
        "constant for the optimizer (onnxruntime/tools/python/remove_initializer_from_input.py).",
    )
