"""Compute equal nodes once: two quantizers of one tensor that learned the same interval, for example.

    f(x), f(x)        one f(x), read twice

Nodes are alike if operator, attributes and inputs are. Of two, the earlier one stays, with its name. Layers, whose
names metadata lists, are not changed, nor is what is kept in float, whose parts are told apart by their names.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.convenience import replace_all_uses_with

from qil_deploy.export.emitter import QIL_DOMAIN

from .replacement import drop_unread
from .rule import Notes

_REPEATED = frozenset(
    {
        *(
            (QIL_DOMAIN, name)
            for name in ("Rescale", "Add", "Mul", "Sigmoid", "LeakyRelu", "GlobalAveragePool", "Quantize")
        ),
        ("", "MaxPool"),
    }
)


class ShareRepeated(ir.passes.InPlacePass):
    """Redirects the readers of a node that repeats an earlier one to the earlier one.

    Attributes:
        notes: of the last run: the nodes that are gone.
    """

    def __init__(self) -> None:
        """Begin without notes."""
        super().__init__()
        self.notes = Notes()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove the repeated nodes."""
        self.notes = Notes()
        first: dict[tuple[object, ...], ir.Value] = {}
        for node in model.graph:
            if (node.domain, node.op_type) not in _REPEATED:
                continue
            attributes = sorted((name, repr(attribute.value)) for name, attribute in node.attributes.items())
            result = node.outputs[0]
            earlier = first.setdefault((node.op_type, *attributes, *map(id, node.inputs)), result)
            if earlier is not result and not result.is_graph_output():
                replace_all_uses_with(result, earlier)
                model.graph.remove(node, safe=True)
                self.notes.rewritten.append(str(node.name))
        drop_unread(model.graph)
        return ir.passes.PassResult(model, bool(self.notes.rewritten))
