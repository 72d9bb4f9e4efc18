"""Clip after a MaxPool instead of before it, where there are fewer codes.

    MaxPool(clip(layer))        clip(MaxPool(layer))

The largest of clipped codes is the clipped largest code.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchContext, MatchResult

from qil_deploy.export.emitter import QIL_DOMAIN, integer

from .replacement import Replacement, inputs_of, producer_of
from .rule import NodeRule

_CLIPPED = ("Conv", "Gemm", "Rescale", "Add", "Mul", "Sigmoid", "LeakyRelu")


class ClipBehindPools(NodeRule):
    """Rewrites pools that are the only reader of clipped codes; `notes` names the operator that clips."""

    op_type = "MaxPool"
    removes = False  # the preceding operator is not part of the pattern

    def name_of(self, node: ir.Node) -> str:
        """Return the operator whose codes are clipped later."""
        layer = inputs_of(node)[0].producer()
        return str(node.name if layer is None else layer.name)

    def check(self, op: MatchContext, result: ir.Value) -> MatchResult:
        """Skip pools whose input is not clipped, or has other readers."""
        del op
        match, source = MatchResult(), inputs_of(producer_of(result))[0]
        layer = source.producer()
        if layer is None or layer.domain != QIL_DOMAIN or layer.op_type not in _CLIPPED:
            return match.fail("what makes its codes clips none", source)
        if "high" not in layer.attributes or (integer(layer, "low"), integer(layer, "high")) == (0, 255):
            return match.fail("its codes reach from 0 to 255 and are not clipped", source)
        if len(source.uses()) != 1 or source.is_graph_output():
            return match.fail("others read the clipped codes, too", source)
        return match

    def rewrite(self, op: Replacement, result: ir.Value) -> ir.Value:
        """Write the operator without its limits, the pool, and a Clip."""
        node = producer_of(result)
        layer, name = producer_of(inputs_of(node)[0]), str(result.name)
        unclipped = op.copy(layer, layer.inputs, f"{layer.outputs[0].name}_unclipped", low=None, high=None)
        pooled = op.copy(node, [unclipped], f"{name}_unclipped")
        limits = [op.constant(np.uint8(integer(layer, limit)), "") for limit in ("low", "high")]
        return op.op("Clip", [pooled, *limits], name, node_name=f"{name}_clip")
