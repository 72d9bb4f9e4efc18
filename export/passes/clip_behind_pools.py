"""Clip behind a MaxPool instead of in front of it: there are fewer codes there.

    MaxPool(clip(layer))        clip(MaxPool(layer))

The largest of clipped codes is the clipped largest code.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qil_deploy.export.emitter import QIL_DOMAIN, integer

from .replacement import Replacement, inputs_of
from .rule import NodeRule

_CLIPPED = ("Conv", "Gemm", "Rescale", "Add")


class ClipBehindPools(NodeRule):
    """Rewrites pools that alone read what an operator clips; `notes` names that operator."""

    op_type = "MaxPool"
    removes = False  # the operator in front is no part of the pattern

    def name_of(self, node: ir.Node) -> str:
        """Return the operator whose codes are clipped later."""
        layer = inputs_of(node)[0].producer()
        return str(node.name if layer is None else layer.name)

    def refuse(self, node: ir.Node) -> str | None:
        """Leave alone pools behind which there is nothing to clip, or before which others read the clipped codes."""
        source = inputs_of(node)[0]
        layer = source.producer()
        if layer is None or layer.domain != QIL_DOMAIN or layer.op_type not in _CLIPPED:
            return "what makes its codes clips none"
        if "high" not in layer.attributes or (integer(layer, "low"), integer(layer, "high")) == (0, 255):
            return "its codes reach from 0 to 255 and are not clipped"
        if len(source.uses()) != 1 or source.is_graph_output():
            return "others read the clipped codes, too"
        return None

    def replace(self, new: Replacement, node: ir.Node) -> ir.Value:
        """Write the operator without its limits, the pool, and a Clip."""
        source = inputs_of(node)[0]
        layer = source.producer()
        if layer is None:
            raise ValueError(f"nothing computes {source.name!r}")
        name = str(node.outputs[0].name)
        unclipped = new.copy(layer, layer.inputs, f"{source.name}_unclipped", low=None, high=None)
        pooled = new.copy(node, [unclipped], f"{name}_unclipped")
        limits = [new.constant(np.uint8(integer(layer, limit)), "") for limit in ("low", "high")]
        return new.op("Clip", [pooled, *limits], name, node_name=f"{name}_clip")
