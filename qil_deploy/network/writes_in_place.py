"""Turn in-place writes into plain operators, so that the graph alone determines which value is read where.

    y = relu_(x)     ->     y = relu(x)      where nobody reads x, or a view of it, after the write

Anything else, such as an identity that is taken before a ReLU overwrites it, is left to PyTorch's functionalization
(`run_decompositions`), which costs five times what capturing does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import fx

from .dropout_marks import mark_dropout


def without_writes(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return a program that computes the same and writes nothing in place.

    Args:
        program: as `torch.export` captured it; it may be changed.
    """
    if _replace_plain_writes(program.graph, set(program.graph_signature.user_inputs)):
        program.graph_module.recompile()
        return program
    mark_dropout(program)
    plain: torch.export.ExportedProgram = program.run_decompositions({})
    return plain


def _replace_plain_writes(graph: fx.Graph, images: Collection[object]) -> bool:
    """Replace every write, if all of them are plain; return whether they were."""
    position = {node: index for index, node in enumerate(graph.nodes)}
    writes = {node: _plain_form(node, position) for node in graph.nodes if _is_write(node)}
    kept = [node.args[0] for node in writes if isinstance(node.args[0], fx.Node) and node.args[0].op == "placeholder"]
    if any(form is None for form in writes.values()) or any(tensor.name not in images for tensor in kept):
        return False
    for node, form in writes.items():
        node.target = form
    return True


def _plain_form(write: fx.Node, position: Mapping[fx.Node, int]) -> object | None:
    """Return the equivalent operator that does not write in place; None if another reader would see the write."""
    written = write.args[0]
    if not isinstance(written, fx.Node) or _is_view(written):
        return None
    others = [user for user in written.users if user is not write]
    if any(position[user] > position[write] or _is_view(user) for user in others):
        return None
    namespace, _, name = write.target._schema.name.partition("::")  # type: ignore[union-attr] # an operator (`_is_write`)
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    overload = getattr(write.target, "_overloadname", "default") or "default"
    form: object | None = getattr(packet, overload, None) if packet is not None and name.endswith("_") else None
    return form


def _is_write(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _is_view(node: fx.Node) -> bool:
    """Whether a node returns memory that is another node's."""
    if node.op == "placeholder":
        return False
    if not isinstance(node.target, torch._ops.OpOverload):  # getitem, of a split perhaps
        return True
    returns = node.target._schema.returns
    return not node.target._schema.is_mutable and any(value.alias_info is not None for value in returns)
