"""Keep OpenVINO from skipping a rounding: a MaxPool over one pixel between a convolution's codes and an addition.

    qil.Conv -> qil.Add, nothing else reading the convolution      qil.Conv -> MaxPool(1x1) -> qil.Add

The pool changes nothing. Without it OpenVINO fuses convolution, quantization, addition and the quantization after it
into one kernel, which adds the convolution's unrounded result: every seventh code of a residual network's first
addition came out one off. Only files for other runtimes need this (`qdq` with int8 weights; decision 0015).
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript.rewriter import MatchContext, MatchResult

from qil_deploy.export.emitter import QIL_DOMAIN

from .replacement import Replacement, inputs_of, producer_of
from .rule import NodeRule


class KeepRoundings(NodeRule):
    """Puts a pool in front of every addition that is a convolution's only reader."""

    domain, op_type = QIL_DOMAIN, "Add"

    def check(self, op: MatchContext, result: ir.Value) -> MatchResult:
        """Skip additions that OpenVINO fuses into nothing."""
        del op
        if any(map(_is_convolution_for, inputs_of(producer_of(result)))):
            return MatchResult()
        return MatchResult().fail("no convolution's codes go to it alone", result)

    def rewrite(self, op: Replacement, result: ir.Value) -> ir.Value:
        """Write the pools, and the addition of their results."""
        node = producer_of(result)
        operands = [
            op.op("MaxPool", [value], f"{value.name}_rounded", attributes={"kernel_shape": [1, 1]})
            if _is_convolution_for(value)
            else value
            for value in inputs_of(node)
        ]
        return op.copy(node, operands)


def _is_convolution_for(value: ir.Value) -> bool:
    """Whether a convolution makes `value`, and one node reads it."""
    producer = value.producer()
    return (
        producer is not None and producer.op_type == "Conv" and len(value.uses()) == 1 and not value.is_graph_output()
    )
