"""Apply rules to a copy of a graph, as the pipeline does to the graph itself."""

from __future__ import annotations

import onnx_ir as ir

from qil_deploy.export.options import Storage
from qil_deploy.export.passes.lower_to_qdq import qdq_rules
from qil_deploy.export.passes.lower_to_qlinear import qlinear_rules
from qil_deploy.export.passes.replacement import Replacement, Workspace
from qil_deploy.export.passes.rule import Notes, Rule, RulePass
from qil_deploy.export.passes.store_weights import StoreWeights


def rewritten(model: ir.Model, *rules: Rule) -> tuple[ir.Model, Notes]:
    """Return a rewritten copy of `model`, and the notes."""
    copy, rewrite = model.clone(), RulePass(*rules)
    rewrite(copy)
    return copy, rewrite.notes


def lowered(model: ir.Model, format_: str = "qlinear") -> ir.Model:
    """Return a copy in one of the formats, before its weights are stored."""
    return rewritten(model, *(qlinear_rules() if format_ == "qlinear" else qdq_rules()))[0]


def stored(model: ir.Model, storage: Storage = "int8") -> ir.Model:
    """Return a copy with its weights stored."""
    return rewritten(model, StoreWeights(storage))[0]


class Tape:
    """The tape on which `onnxscript` lets a rule write nodes, for calling functions of rules directly."""

    def __init__(self) -> None:
        """Begin with no nodes."""
        self.nodes: list[ir.Node] = []

    def op(
        self, op_type: str, *inputs: ir.Value, _domain: str, _outputs: list[str], _name: str, **attributes: object
    ) -> ir.Value:
        """Write a node."""
        output = ir.Value(name=_outputs[0])
        self.nodes.append(
            ir.node(op_type, inputs, attributes=attributes, domain=_domain, outputs=[output], name=_name)  # type: ignore[arg-type]  # plain values
        )
        return output


def replacement() -> tuple[Replacement, Tape]:
    """Return a replacement that writes into an empty graph, and the list of its nodes."""
    graph, tape = ir.Graph([], [], nodes=[], opset_imports={"": 21}), Tape()
    return Replacement(tape, Workspace(graph), set()), tape  # type: ignore[arg-type]  # all that is used of it
