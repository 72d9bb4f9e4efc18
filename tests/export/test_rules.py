"""Rules: what they write takes free names, replacements keep the original's name, and both outcomes are recorded."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from onnxscript.rewriter import MatchContext, MatchResult

from qil_deploy.export.emitter import QIL_DOMAIN, Emitter
from qil_deploy.export.options import ExportOptions
from qil_deploy.export.passes.pipeline import State, Step, run, steps
from qil_deploy.export.passes.replacement import Replacement, inputs_of, producer_of
from qil_deploy.export.passes.rule import NodeRule, RulePass
from qil_deploy.export.passes.set_versions import choose_opset
from qil_deploy.export.passes.tidy import Tidy

from .rewriting import rewritten


def small_model() -> ir.Model:
    """(image + 1) * [1, 2], with an unused initializer and one in int4."""
    x = ir.Value(name="image", shape=ir.Shape(["batch", 2]), type=ir.TensorType(ir.DataType.FLOAT))
    emitter = Emitter()
    emitter.constant(np.float32(7), "unread")
    y = emitter.op("Add", [x, emitter.constant(np.float32(1), "")], "sum")
    packed = ir.Tensor(np.array([1, 2], ml_dtypes.int4), dtype=ir.DataType.INT4, name="packed")
    factor = emitter.op("Cast", [emitter.tensor(packed)], "factor", attributes={"to": ir.DataType.FLOAT})
    z = emitter.op("Mul", [y, factor], "product", node_name="times")
    z.shape, z.type = x.shape, x.type
    return emitter.model([x], [z], {"": 21}, ir_version=10)


class Additions(NodeRule):
    """Replaces additions by the result of a function."""

    op_type = "Add"

    def __init__(self, write: Callable[[Replacement, ir.Node], ir.Value], domain: str = "") -> None:
        super().__init__()
        self.write = write
        self.domain = domain

    def rewrite(self, op: Replacement, result: ir.Value) -> ir.Value:
        return self.write(op, producer_of(result))


def subtract(new: Replacement, node: ir.Node) -> ir.Value:
    x, one = inputs_of(node)
    return new.op("Sub", [x, new.op("Neg", [one], f"{node.name}_negated")], "of no account", node_name="sum")


def test_what_is_replaced_keeps_its_name_and_its_readers() -> None:
    model, notes = rewritten(small_model(), Additions(subtract))
    assert [(node.op_type, node.name) for node in model.graph] == [
        ("Neg", "sum_negated"), ("Sub", "sum"), ("Cast", "factor"), ("Mul", "times"),
    ]  # fmt: skip
    assert [node.outputs[0].name for node in model.graph] == ["sum_negated", "sum", "factor", "product"]
    assert [output.name for output in model.graph.outputs] == ["product"]
    assert (notes.rewritten, notes.left_alone) == (["sum"], {})


def test_a_rule_of_another_domain_does_not_apply() -> None:
    model, notes = rewritten(small_model(), Additions(subtract, domain=QIL_DOMAIN))
    assert ir.to_proto(model) == ir.to_proto(small_model())
    assert not notes.rewritten


def test_why_a_node_is_left_alone_is_noted() -> None:
    class Never(Additions):
        def check(self, op: MatchContext, result: ir.Value) -> MatchResult:
            del op
            return MatchResult().fail(f"{producer_of(result).op_type} is never rewritten")

    model, notes = rewritten(small_model(), Never(subtract))
    assert ir.to_proto(model) == ir.to_proto(small_model())
    assert (notes.rewritten, notes.left_alone) == ([], {"Add is never rewritten": ["sum"]})


def test_a_rule_leaves_what_it_has_written_alone() -> None:
    model, notes = rewritten(small_model(), Additions(lambda new, node: new.copy(node, node.inputs)))
    assert [node.op_type for node in model.graph] == ["Add", "Cast", "Mul"]
    assert (notes.rewritten, notes.left_alone) == (["sum"], {})


def test_tensors_that_a_rule_adds_take_names_that_are_free() -> None:
    def several(new: Replacement, node: ir.Node) -> ir.Value:
        x, one = inputs_of(node)
        for name in ("factor", "product", "packed", "other", "other"):
            x = new.op("Neg", [x], name)
        return new.copy(node, [x, one])

    model, _ = rewritten(small_model(), Additions(several))
    names = [node.outputs[0].name for node in model.graph]
    assert names == ["factor_2", "product_2", "packed_2", "other", "other_2", "sum", "factor", "product"]
    assert sorted(model.graph.initializers) == ["float32_1", "packed"]


def test_constants_are_shared_with_the_graph_and_dropped_when_nothing_reads_them() -> None:
    def other_constants(new: Replacement, node: ir.Node) -> ir.Value:
        x, one = inputs_of(node)
        assert new.constant(np.float32(1), "") is one
        return new.op("Sub", [x, new.constant(np.float32(-1), "")], "sum")

    model = small_model()
    content = model.graph.initializers["float32_1"]
    RulePass(Additions(other_constants))(model)
    assert sorted(model.graph.initializers) == ["float32_-1", "packed"]
    assert content.const_value is None


def test_constants_are_written_in_the_order_in_which_they_are_read() -> None:
    model = small_model()
    Tidy(batch=3)(model)
    assert list(model.graph.initializers) == ["float32_1", "packed"]
    assert model.graph.inputs[0].shape == ir.Shape([3, 2])


def test_steps_require_and_ensure_what_they_say() -> None:
    captured = small_model()
    captured.graph.append(ir.node("Conv", [], domain=QIL_DOMAIN, name="left"))
    nothing = RulePass(Additions(subtract))
    with pytest.raises(ir.passes.PreconditionError, match="Conv of the domain 'qil' is no part of a LOWERED graph"):
        run(captured, [Step(nothing, State.LOWERED, State.STORED)])
    with pytest.raises(ir.passes.PostconditionError, match="Conv of the domain 'qil' is no part of a STORED graph"):
        run(captured, [Step(nothing, State.CAPTURED, State.STORED)])


@pytest.mark.parametrize("format_", ["qlinear", "qdq"])
@pytest.mark.parametrize("weights", ["packed", "int8"])
def test_every_step_finds_what_the_one_before_leaves(format_: str, weights: str) -> None:
    chosen = steps(ExportOptions(format=format_, weights=weights))  # type: ignore[arg-type]  # literals
    order = list(State)
    for before, after in itertools.pairwise(chosen):
        assert before.ensures is after.requires
        assert order.index(after.requires) <= order.index(after.ensures)
    assert (chosen[0].requires, chosen[-1].ensures) == (State.CAPTURED, State.STORED)


def test_the_oldest_opset_that_holds_everything() -> None:
    packed = [ir.DataType.FLOAT, ir.DataType.INT2]
    assert choose_opset(packed, None, "packed", None) == 25
    assert choose_opset([ir.DataType.INT8], None, "int8", 18) == 18
    assert choose_opset([ir.DataType.INT8], 17, "int8", None) == 17
