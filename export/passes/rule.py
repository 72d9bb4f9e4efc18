"""Base classes of the export's rules: a pattern, a check that may refuse with a sentence, and a recorded rewrite.

A rule is one of `onnxscript.rewriter`: `pattern` says which nodes it looks at, `check` refuses those that it cannot or
should not rewrite, `rewrite` writes their replacement. `RulePass` turns some rules into a pass of `onnx_ir`. Two
things are added here:

- Names. What replaces a tensor takes its name (`onnxscript` sees to that); whatever else a rule writes takes a free one
  (`replacement`).
- Notes. The names of the nodes that a rule rewrote, and why it skipped others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import (
    MatchContext,
    MatchResult,
    RewriterContext,
    RewriteRule,
    RewriteRuleClassBase,
    RewriteRuleSet,
)

from .replacement import Replacement, Workspace, drop_unread, inputs_of, producer_of


@dataclass
class Notes:
    """Record of a pass.

    Attributes:
        rewritten: names of nodes, in order of execution.
        left_alone: by a sentence that says why, the names of the nodes that the pass left as they were.
    """

    rewritten: list[str] = field(default_factory=list)
    left_alone: dict[str, list[str]] = field(default_factory=dict)

    def leave(self, name: str, reason: str) -> None:
        """Record why a node was not rewritten."""
        self.left_alone.setdefault(reason, []).append(name)

    def add(self, others: Notes) -> None:
        """Add the entries of other notes."""
        self.rewritten += others.rewritten
        for reason, names in others.left_alone.items():
            self.left_alone.setdefault(reason, []).extend(names)


class Rule(RewriteRuleClassBase):
    """A rule that records the nodes it rewrites and those it skips.

    The result of a pattern is called `result`. `check` fails with a sentence that says why the node is skipped, without
    a full stop. `rewrite` receives a `Replacement` to write with, and returns what replaces `result`.

    Attributes:
        removes: whether what was matched is removed at once; otherwise when nothing reads it.
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

    def name_of(self, node: ir.Node) -> str:
        """Return the name to record for a rewritten node."""
        return str(node.name)

    def rewrite(self, op: Any, *args: Any, **kwargs: Any) -> ir.Value | None:  # noqa: ANN401 - what a pattern binds
        """Write the replacement of a match, and return the value that replaces `result`."""
        raise NotImplementedError

    def as_rule(self) -> RewriteRule:
        """Return the rule that `onnxscript` applies; without a name, which it would write into every node."""
        return RewriteRule(self.pattern, self._rewrite_noted, self._check_noted, remove_nodes=self.removes)

    def _check_noted(self, context: MatchContext, result: ir.Value, **others: Any) -> MatchResult:  # noqa: ANN401 - values and attributes
        node = producer_of(result)
        if node in self._written:
            return MatchResult().fail("the rule has written it", node)
        match = self.check(context, result=result, **others)
        if not match:
            self.notes.leave(str(node.name), match.reason)
        return match

    def _rewrite_noted(self, op: RewriterContext, result: ir.Value, **others: Any) -> ir.Value | None:  # noqa: ANN401 - as above
        if self._workspace is None:
            raise ValueError("a rule is applied by a RulePass")
        name = self.name_of(producer_of(result))
        node_name = str(producer_of(result).name)
        new = self.rewrite(Replacement(op, self._workspace, self._written, node_name), result=result, **others)
        if new is not None:
            self.notes.rewritten.append(name)
        return new


class NodeRule(Rule):
    """A rule for single nodes, whatever their neighbours are."""

    domain = ""
    op_type = ""

    def pattern(self, op: Any) -> Any:  # noqa: ANN401 - onnxscript's builder of patterns
        """Any node of this operator."""
        return getattr(op, self.op_type)(_domain=self.domain, _allow_other_inputs=True, _outputs=["result"])


def node_rule(domain: str, op_type: str, replace: Callable[[Replacement, ir.Node, list[ir.Value]], ir.Value]) -> Rule:
    """Return the rule that replaces every node of an operator; `replace` is given the node and its inputs."""

    class Lowering(NodeRule):
        def rewrite(self, op: Replacement, result: ir.Value) -> ir.Value:
            node = producer_of(result)
            return replace(op, node, inputs_of(node))

    rule = Lowering()
    rule.domain, rule.op_type = domain, op_type
    return rule


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
        """Rewrite the model in place, and drop constants that are no longer read."""
        workspace = Workspace(model.graph)
        for rule in self._rules:
            rule.begin(workspace)
        count = RewriteRuleSet([rule.as_rule() for rule in self._rules]).apply_to_model(model)
        self.notes = Notes()
        for rule in self._rules:
            self.notes.add(rule.notes)
        drop_unread(model.graph)
        return ir.passes.PassResult(model, bool(count))
