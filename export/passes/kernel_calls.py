"""Rewrite operators between and after convolutions of few bits: LowBitMatMul, LowBitMaxPool.

    com.microsoft.MatMulNBits(A, B, scales, zero_points)      qil.deploy.LowBitMatMul(A, B, scales, zero_points)
    MaxPool(x)                                                qil.deploy.LowBitMaxPool(x)

Both compute the same as before, and the file contains a function of each name (`kernel_functions`). The first
multiplies weights that stay packed in memory. The second is for codes that `TernaryConv` makes: kernels make them
channel by channel, where ONNX Runtime's MaxPool takes many times as long as with channels last. After other layers ONNX
Runtime has channels last itself, and a pool stays as it is.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript.rewriter import MatchContext, MatchResult

from qil_deploy.export.emitter import MICROSOFT_DOMAIN
from qil_deploy.onnx_io import KERNEL_DOMAIN, LOW_BIT_MATMUL, LOW_BIT_MAX_POOL, TERNARY_CONV

from .replacement import Replacement, inputs_of, producer_of
from .rule import NodeRule

_WINDOW = ("kernel_shape", "strides", "pads")


class LowBitMatMul(NodeRule):
    """Rewrites products with packed weights, all of which the export has proven exact (`matmul_nbits`)."""

    domain, op_type = MICROSOFT_DOMAIN, "MatMulNBits"

    def rewrite(self, op: Replacement, result: ir.Value) -> ir.Value:
        """Write the same node under the name of the library's operator."""
        node = producer_of(result)
        return op.op(
            LOW_BIT_MATMUL,
            inputs_of(node),
            str(result.name),
            domain=KERNEL_DOMAIN,
            attributes=dict(node.attributes),
            node_name=node.name,
        )


class LowBitMaxPool(NodeRule):
    """Rewrites pools of the codes that a `TernaryConv` makes."""

    op_type = "MaxPool"

    def check(self, op: MatchContext, result: ir.Value) -> MatchResult:
        """Skip pools of other codes, and those whose windows are dilated or extend beyond the image."""
        del op
        node, match = producer_of(result), MatchResult()
        source = inputs_of(node)[0].producer()
        if source is None or (source.domain, source.op_type) != (KERNEL_DOMAIN, TERNARY_CONV):
            return match.fail(f"no {TERNARY_CONV} makes the codes that it pools", node)
        attributes = node.attributes
        if "ceil_mode" in attributes and attributes["ceil_mode"].as_int():
            return match.fail("its windows may reach beyond its pads", node)
        if "dilations" in attributes and any(step != 1 for step in attributes["dilations"].as_ints()):
            return match.fail("its windows have gaps", node)
        return match

    def rewrite(self, op: Replacement, result: ir.Value) -> ir.Value:
        """Write the node."""
        node = producer_of(result)
        window = {name: node.attributes[name] for name in _WINDOW if name in node.attributes}
        return op.op(
            LOW_BIT_MAX_POOL,
            inputs_of(node),
            str(result.name),
            domain=KERNEL_DOMAIN,
            attributes=window,
            node_name=node.name,
        )
