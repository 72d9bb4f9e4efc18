"""Rewrite convolutions of few bits: TernaryConv and LowBitConv, which a kernel library computes with less work.

    qil.Conv(x, codes, spread, bias, w_scale)       qil.deploy.LowBitConv(x, x_scale, 0, w, w_scale, 0, y_scale,
                                                        y_zero_point, bias, low, high, x_high)

The file contains a function of each name, `Clip(QLinearConv(...), low, high)`, so that it is complete without the
library (`qil_deploy.onnx_io.kernel_operators`). What kernels rely on is proven here, from the integers:

    LowBitConv      max|codes| <= 7,  x <= x_high <= 15     products are so small that many of them sum to 16 bits
    TernaryConv     max|codes| <= 1,  x <= x_high <= 3      their sums are looked up, in 16 bits: 3 * sum|codes| of
                    one group                               an output channel is 32767 at most

Both compute the same. They have two names because a runtime with the library runs all nodes of a name in its kernels,
or none, and lookup wins on processors where the other kernels do not.

`w = codes * spread`, which kernels divide by the greatest common divisor of each output channel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchContext, MatchResult

from qil_deploy.export.emitter import QIL_DOMAIN, array_of, integer
from qil_deploy.onnx_io import KERNEL_DOMAIN, LOW_BIT_CONV, TERNARY_CONV

from .lower_to_qlinear import grid_of, output_name, weight_of, window_of, zero_weight_points
from .replacement import Replacement, inputs_of, producer_of
from .rule import NodeRule

MAX_WEIGHT_CODE = 7  # of 4 bits
MAX_CODE = 15
MAX_LOOKED_UP = 3  # the largest code for a lookup
MAX_SUM = 32767  # of a lookup, before bias and multiplier


class LowBitConv(NodeRule):
    """Rewrites convolutions whose weights and codes have at most 4 bits, of one group or one for each channel."""

    domain, op_type = QIL_DOMAIN, "Conv"

    def check(self, op: MatchContext, result: ir.Value) -> MatchResult:
        """Skip convolutions that no kernel supports."""
        del op
        node, match = producer_of(result), MatchResult()
        reason = _why_no_kernel(node, array_of(inputs_of(node)[1]))
        return match if reason is None else match.fail(reason, node)

    def rewrite(self, op: Replacement, result: ir.Value) -> ir.Value:
        """Write the node; its weights stay `qil.Weight` for `store_weights`."""
        node = producer_of(result)
        x, codes, spread, bias, w_scale = inputs_of(node)
        limits = (("low", 0), ("high", 255), ("x_high", 255))
        operands = [
            x,
            *grid_of(op, node, "x"),
            weight_of(op, node, codes, spread),
            w_scale,
            zero_weight_points(op, node, w_scale),
            *grid_of(op, node, "y"),
            bias,
            *(op.constant(np.uint8(integer(node, n) if n in node.attributes else whole), "") for n, whole in limits),
        ]
        return op.op(
            TERNARY_CONV if _is_looked_up(node, array_of(codes)) else LOW_BIT_CONV,
            operands,
            output_name(node),
            domain=KERNEL_DOMAIN,
            attributes=window_of(node),
            node_name=node.name,
        )


def _why_no_kernel(node: ir.Node, codes: Any) -> str | None:  # noqa: ANN401 - an array of integers
    """Return the reason why a convolution is not rewritten; None if it qualifies."""
    groups, channels = integer(node, "group"), codes.shape[1]
    largest = int(np.abs(codes.astype(np.int16)).max(initial=0))
    if "y_scale" not in node.attributes:
        return "its sums become floats, not codes"
    if largest > MAX_WEIGHT_CODE:
        return f"its weights have codes above {MAX_WEIGHT_CODE}, more than 4 bits"
    if integer(node, "x_zero_point") != 0:
        return "the codes it reads have a zero point other than 0"
    if integer(node, "x_high") > MAX_CODE:
        return f"the codes it reads reach {integer(node, 'x_high')}, above {MAX_CODE}"
    if groups > 1 and channels > 1:
        return "it has groups of several channels"
    return None


def _is_looked_up(node: ir.Node, codes: Any) -> bool:  # noqa: ANN401 - an array of integers
    """Whether the lookup kernel takes a convolution: ternary weights and codes 0..3, one group, sums of 16 bits.

    A 1x1 convolution of stride 1 is left out: ONNX Runtime's product of matrices is as fast there on x86.
    """
    x_high, magnitudes = integer(node, "x_high"), np.abs(codes.astype(np.int64))
    if codes.shape[2:] == (1, 1) and list(node.attributes["strides"].as_ints()) == [1, 1]:
        return False
    if integer(node, "group") != 1 or x_high > MAX_LOOKED_UP or magnitudes.max(initial=0) > 1:
        return False
    return bool(MAX_LOOKED_UP * magnitudes.sum(axis=(1, 2, 3)).max(initial=0) <= MAX_SUM)
