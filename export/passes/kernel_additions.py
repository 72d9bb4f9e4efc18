"""Rewrite additions around convolutions that use lookup tables: ResidualAdd, LowBitRescale.

    qil.Add(a, b)        qil.deploy.ResidualAdd(a, a_scale, a_zero_point, b, ..., y_scale, y_zero_point)
    qil.Rescale(x)       qil.deploy.LowBitRescale(x, ..., y_scale, y_zero_point, low, high)

The operands are those of the QLinearAdd and Clip that `lower_to_qlinear` writes for the same nodes, and the file
contains these nodes as functions (`kernel_functions`).

A `TernaryConv` reads and makes codes channel by channel. ONNX Runtime's own convolutions have the channels last, and
its optimizer moves the transpositions between the two layouts past its own additions, but not past these operators. So
only what has that layout is rewritten: sums with an operand from a `TernaryConv`, and rescalings after such nodes, or
before nothing but `TernaryConv`.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchContext, MatchResult

from qil_deploy.export.emitter import QIL_DOMAIN, integer
from qil_deploy.onnx_io import KERNEL_DOMAIN, LOW_BIT_MAX_POOL, LOW_BIT_RESCALE, RESIDUAL_ADD, TERNARY_CONV

from .lower_to_qlinear import grid_of, offset_operand, output_name
from .replacement import Replacement, inputs_of, producer_of
from .rule import NodeRule

_WHOLE = (0, 255)  # what uint8 saturates to without a Clip
_CHANNEL_BY_CHANNEL = (TERNARY_CONV, LOW_BIT_MAX_POOL, RESIDUAL_ADD)


class ResidualAdd(NodeRule):
    """Rewrites 8-bit sums of the codes of a `TernaryConv` and others."""

    domain, op_type = QIL_DOMAIN, "Add"

    def check(self, op: MatchContext, result: ir.Value) -> MatchResult:
        """Skip sums of few bits, and those of other codes."""
        del op
        node, match = producer_of(result), MatchResult()
        if not any(_is_made_by(value, (TERNARY_CONV,)) for value in inputs_of(node)):
            return match.fail(f"no {TERNARY_CONV} makes one of the codes that it adds", node)
        if _limits(node) != _WHOLE:
            return match.fail("its sums are clipped to fewer bits", node)
        return match

    def rewrite(self, op: Replacement, result: ir.Value) -> ir.Value:
        """Write the node."""
        node = producer_of(result)
        a, b = inputs_of(node)
        operands = [a, *grid_of(op, node, "a"), b, *grid_of(op, node, "b"), *grid_of(op, node, "y")]
        return op.op(RESIDUAL_ADD, operands, output_name(node), domain=KERNEL_DOMAIN, node_name=node.name)


class LowBitRescale(NodeRule):
    """Rewrites rescalings of codes to fewer bits, before or after a `TernaryConv`."""

    domain, op_type = QIL_DOMAIN, "Rescale"

    def check(self, op: MatchContext, result: ir.Value) -> MatchResult:
        """Skip rescalings to 8 bits, and those whose codes may have channels last."""
        del op
        node, match = producer_of(result), MatchResult()
        readers = [(reader.domain, reader.op_type) for reader, _ in result.uses()]
        is_read_so = bool(readers) and set(readers) == {(KERNEL_DOMAIN, TERNARY_CONV)}
        if not is_read_so and not _is_made_by(inputs_of(node)[0], _CHANNEL_BY_CHANNEL):
            return match.fail(f"no {TERNARY_CONV} makes the codes that it rescales, or reads all that it makes", node)
        if _limits(node) == _WHOLE:
            return match.fail("it makes codes of 8 bits", node)
        return match

    def rewrite(self, op: Replacement, result: ir.Value) -> ir.Value:
        """Write the node."""
        node = producer_of(result)
        operands = [
            inputs_of(node)[0],
            *grid_of(op, node, "x"),
            *offset_operand(op, node),
            *grid_of(op, node, "y"),
            *(op.constant(np.uint8(limit), "") for limit in _limits(node)),
        ]
        return op.op(LOW_BIT_RESCALE, operands, output_name(node), domain=KERNEL_DOMAIN, node_name=node.name)


def _limits(node: ir.Node) -> tuple[int, int]:
    """Return the smallest and the largest code that a node makes."""
    return (integer(node, "low"), integer(node, "high")) if "high" in node.attributes else _WHOLE


def _is_made_by(value: ir.Value, operators: Collection[str]) -> bool:
    """Whether a node of one of these operators of the library makes a tensor."""
    source = value.producer()
    return source is not None and source.domain == KERNEL_DOMAIN and source.op_type in operators
