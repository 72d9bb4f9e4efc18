"""What the rules of the export share: a pattern, a check that refuses with a sentence, and a rewrite that is noted.

A rule is one of `onnxscript.rewriter`: `pattern` says which nodes it looks at, `check` refuses those that it cannot or
should not rewrite, `rewrite` writes what takes their place. `RulePass` makes a pass of `onnx_ir` of some rules. Two
things are added here:

- Names. Metadata, golden vectors and comparisons find tensors by the names of the network's modules. What replaces a
  tensor takes its name (`onnxscript` sees to that); whatever else a rule writes takes a name that is free.
- Notes. The names of the nodes that a rule rewrote, and why it left others alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.rewriter import (
    MatchContext,
    MatchResult,
    RewriterContext,
    RewriteRule,
    RewriteRuleClassBase,
    RewriteRuleSet,
)

from qil_deploy.export.emitter import free_name


@dataclass
class Notes:
    """What a pass did.

    Attributes:
        rewritten: names of nodes, in order of execution.
        left_alone: by a sentence that says why, the names of the nodes that the pass left as they were.
    """

    rewritten: list[str] = field(default_factory=list)
    left_alone: dict[str, list[str]] = field(default_factory=dict)

    def leave(self, name: str, reason: str) -> None:
        """Note why a node was left alone."""
        self.left_alone.setdefault(reason, []).append(name)

    def add(self, others: Notes) -> None:
        """Take over what other notes say."""
        self.rewritten += others.rewritten
        for reason, names in others.left_alone.items():
            self.left_alone.setdefault(reason, []).extend(names)


class Workspace:
    """A graph while a pass rewrites it: names that are taken, and constants that are stored once."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
        self._taken = {str(value.name) for value in values}
        self._shared = {
            _bits(content.numpy()): value
            for value in graph.initializers.values()
            if (content := value.const_value) is not None and _is_shared(content)
        }

    def take_name(self, name: str) -> str:
        """Return `name`, or the first like it that is free; it is taken from now on."""
        free = free_name(name, self._taken)
        self._taken.add(free)
        return free

    def constant(self, array: NDArray[Any] | np.generic, name: str) -> ir.Value:
        """Return an initializer; scalars, and vectors of zeros, share one where every bit is equal.

        A shared one is named after its value, and has a number behind it where that name is taken.
        """
        array = np.asarray(array)
        if array.ndim > 0 and array.any():
            return self.tensor(ir.tensor(array, name=name))
        if _bits(array) not in self._shared:
            value = f"{array.item():.9g}" if array.ndim == 0 else f"0x{'x'.join(map(str, array.shape))}"
            self._shared[_bits(array)] = self.tensor(ir.tensor(array, name=f"{array.dtype}_{value}"))
        return self._shared[_bits(array)]

    def tensor(self, tensor: ir.TensorProtocol) -> ir.Value:
        """Return an initializer that holds `tensor`, under its name or the first like it that is free."""
        value = ir.Value(
            name=self.take_name(str(tensor.name)),
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value


def _is_shared(content: ir.TensorProtocol) -> bool:
    return content.dtype not in (ir.DataType.INT2, ir.DataType.INT4) and (
        len(content.shape) == 0 or not content.numpy().any()
    )


def _bits(array: NDArray[Any]) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, array.tobytes()


class Replacement:
    """Writes the nodes that take the place of others."""

    def __init__(self, op: RewriterContext, workspace: Workspace, written: set[ir.Node]) -> None:
        self._op = op
        self._workspace = workspace
        self._written = written
        self.constant = workspace.constant
        self.tensor = workspace.tensor

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        *,
        domain: str = "",
        attributes: Mapping[str, Any] | None = None,
        node_name: str | None = None,
    ) -> ir.Value:
        """Write a node with one output called `name`; the node is called `node_name`, by default `name` too."""
        output: ir.Value = self._op.op(  # type: ignore[attr-defined]  # of the one builder that there is
            op_type,
            *inputs,
            _domain=domain,
            _outputs=[self._workspace.take_name(name)],
            _name=node_name or name,
            **(attributes or {}),
        )
        self._written.add(output.producer())  # type: ignore[arg-type]  # it has just been made
        return output

    def rename(self, value: ir.Value, name: str) -> None:
        """Give a value that has been written another name, or the first like it that is free."""
        value.name = self._workspace.take_name(name)

    def copy(
        self, node: ir.Node, inputs: Sequence[ir.Value | None], name: str | None = None, **attributes: object
    ) -> ir.Value:
        """Write a copy of a node with new inputs, its result called `name`; attributes that are None are left out."""
        changed = {attribute.name: attribute for attribute in node.attributes.values()} | attributes
        return self.op(
            node.op_type,
            inputs,
            name or str(node.outputs[0].name),
            domain=node.domain,
            attributes={name: value for name, value in changed.items() if value is not None},
            node_name=node.name,
        )


class Rule(RewriteRuleClassBase):
    """A rule that notes what it rewrites and what it leaves alone.

    Subclasses say which nodes they look at (`pattern`, whose result is called `result`), why one of them is left alone
    (`refuse`), and what takes its place (`replace`).

    Attributes:
        removes: whether what was matched goes at once; otherwise when nothing reads it any more.
        notes: of the last pass.
    """

    removes = True

    def __init__(self) -> None:
        super().__init__()
        self.notes = Notes()
        self._workspace: Workspace | None = None
        self._written: set[ir.Node] = set()

    def begin(self, workspace: Workspace) -> None:
        """Forget earlier graphs."""
        self.notes, self._workspace, self._written = Notes(), workspace, set()

    def refuse(self, node: ir.Node) -> str | None:
        """Return why a node is left alone, in a sentence without a full stop; None to rewrite it."""
        del node
        return None

    def replace(self, new: Replacement, node: ir.Node) -> ir.Value:
        """Write what takes the place of a node, and return the value that takes the place of its result."""
        raise NotImplementedError

    def name_of(self, node: ir.Node) -> str:
        """Return which name to note where a node is rewritten."""
        return str(node.name)

    def check(self, op: MatchContext, *_: object, result: ir.Value, **_others: object) -> MatchResult:
        """Refuse a match with a sentence; what this rule has written itself is none of its business."""
        del op
        node, match = _producer(result), MatchResult()
        if node in self._written:
            return match.fail("the rule has written it", node)
        reason = self.refuse(node)
        if reason is None:
            return match
        self.notes.leave(str(node.name), reason)
        return match.fail(reason, node)

    def rewrite(self, op: RewriterContext, result: ir.Value, **_others: object) -> ir.Value:
        """Write what takes the place of a match, and note its name."""
        if self._workspace is None:
            raise ValueError("a rule is applied by a RulePass")
        node = _producer(result)
        new = self.replace(Replacement(op, self._workspace, self._written), node)
        self.notes.rewritten.append(self.name_of(node))
        return new

    def as_rule(self) -> RewriteRule:
        """Return what `onnxscript` applies; without a name, which it would write into every node."""
        return RewriteRule(self.pattern, self.rewrite, self.check, remove_nodes=self.removes)


class NodeRule(Rule):
    """A rule for one node by itself, whatever reads and makes what it reads and makes."""

    domain = ""
    op_type = ""

    def pattern(self, op: Any) -> Any:  # noqa: ANN401 - onnxscript's builder of patterns
        """Any node of this operator."""
        return getattr(op, self.op_type)(_domain=self.domain, _allow_other_inputs=True, _outputs=["result"])


def node_rule(domain: str, op_type: str, replace: Callable[[Replacement, ir.Node, list[ir.Value]], ir.Value]) -> Rule:
    """Return the rule that replaces every node of an operator; `replace` is given the node and its inputs."""

    class Lowering(NodeRule):
        def replace(self, new: Replacement, node: ir.Node) -> ir.Value:
            return replace(new, node, inputs_of(node))

    rule = Lowering()
    rule.domain, rule.op_type = domain, op_type
    return rule


def inputs_of(node: ir.Node) -> list[ir.Value]:
    """Return the inputs of a node that are not left out."""
    return [value for value in node.inputs if value is not None]


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    if node is None:
        raise ValueError(f"nothing computes {value.name!r}")
    return node


class RulePass(ir.passes.InPlacePass):
    """A pass that applies rules to every node, in order.

    Attributes:
        notes: of the last run.
    """

    def __init__(self, *rules: Rule) -> None:
        """Apply these rules."""
        super().__init__()
        self.notes = Notes()
        self._rules = rules

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the model in place, and drop constants that nothing reads any more."""
        workspace = Workspace(model.graph)
        for rule in self._rules:
            rule.begin(workspace)
        count = RewriteRuleSet([rule.as_rule() for rule in self._rules]).apply_to_model(model)
        self.notes = Notes()
        for rule in self._rules:
            self.notes.add(rule.notes)
        drop_unread(model.graph)
        return ir.passes.PassResult(model, bool(count))


def drop_unread(graph: ir.Graph) -> None:
    """Remove constants that no node reads, and let go of their content.

    Nodes and tensors refer to each other: left alone, they would keep all weights in memory until Python looks for such
    circles, which may be long after.
    """
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
            value.const_value = None
