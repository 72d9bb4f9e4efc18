"""Find the row of a node in the table of ONNX operators, and refuse what the reference cannot execute."""

from __future__ import annotations

from qil_deploy.onnx_io import Node
from qil_deploy.untrusted_text import excerpt

from .operator_row import Effect, Operator
from .operators import OPERATORS

# Attributes that are understood, with the one value that the kernels compute.
_FIXED_ATTRIBUTES: dict[str, int | float | str] = {
    "allowzero": 0,
    "alpha": 1.0,
    "auto_pad": "NOTSET",
    "beta": 1.0,
    "block_size": 0,
    "channels_last": 0,
    "mode": "constant",
    "precision": 0,
    "saturate": 1,
    "storage_order": 0,
    "transA": 0,
}


def operator_of(node: Node) -> Operator:
    """Return the row of a node; for an operator without one, an empty row.

    ONNX Runtime names all operators from codes to codes QLinear..., and most of them are never asked about.
    """
    known = OPERATORS.get(node.op_type)
    if known is not None:
        return known
    is_quantized = node.op_type.startswith(("QLinear", "QOrdered"))
    effect = Effect.QUANTIZES if node.op_type.startswith("QLinear") else Effect.COMPUTES
    return Operator(name=node.op_type, domain=node.domain, effect=effect, quantized=is_quantized)


def effect_of(node: Node) -> Effect:
    """Return the effect of a node on the elements it reads: without a grid for its result, it makes no codes."""
    operator = operator_of(node)
    result = operator.result
    if operator.effect is Effect.QUANTIZES and result is not None and len(node.inputs) <= result.scale:
        return Effect.COMPUTES
    return operator.effect


def names_of(*effects: Effect) -> frozenset[str]:
    """Return the operators that have one of these effects."""
    return frozenset(operator.name for operator in OPERATORS.values() if operator.effect in effects)


def find_operator(node: Node) -> Operator:
    """Return the operator of a node that the reference must execute.

    Raises:
        ValueError: it cannot, or an attribute asks for what no kernel here computes.
    """
    operator = OPERATORS.get(node.op_type)
    if operator is None or operator.domain != node.domain or not operator.is_executed:
        surrounded = ""
        fused = OPERATORS.get(operator.fused_to) if operator is not None and not node.domain else None
        if fused is not None and fused.is_executed:
            surrounded = "; in a QDQ file it has to stand between DequantizeLinear and QuantizeLinear"
        raise ValueError(f"no integer kernel exists for {node.domain or 'ai.onnx'} {node.op_type}{surrounded}")
    for name, value in node.attributes.items():
        if name in operator.attributes:
            continue
        if name not in _FIXED_ATTRIBUTES:
            raise ValueError(f"attribute {name!r} of {node.op_type} is not supported")
        if value != _FIXED_ATTRIBUTES[name]:
            raise ValueError(
                f"attribute {name!r} is {excerpt(repr(value))}; only {_FIXED_ATTRIBUTES[name]!r} is supported"
            )
    if len(node.outputs) != 1:
        raise ValueError(f"{len(node.outputs)} outputs are asked for; only the first is supported")
    return operator
