"""Graphs of plain modules: the form of a captured network, and queries about its nodes.

After `capture` every node is the input, the output, or a call of a module that has a row in the table of operators
(`operators`); every node carries the shape of its result for the example input in `node.meta["shape"]`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import fx, nn

from .callers_state import evaluation_mode
from .operator_row import Kind, Operator
from .operators import operator_of


def kind_of(graph_module: fx.GraphModule, node: fx.Node) -> Kind | None:
    """Return the kind of a node: its effect on values; None for a quantizer or a frozen module."""
    if node.op == "placeholder":
        return "input"
    if node.op == "output":
        return "output"
    row = row_of(graph_module, node)
    return None if row is None else row.kind


def row_of(graph_module: fx.GraphModule, node: fx.Node) -> Operator | None:
    """Return the row of the operator that a node calls; None for input, output, quantizers and frozen modules."""
    return operator_of(module_of(graph_module, node)) if node.op == "call_module" else None


def module_of(graph_module: fx.GraphModule, node: fx.Node) -> nn.Module:
    """Return the module that a `call_module` node calls."""
    return graph_module.get_submodule(str(node.target))


def free_name(network: nn.Module, name: str) -> str:
    """Return `name`, or with a number appended the first name that no module of a network has yet."""
    taken = {existing for existing, _ in network.named_modules(remove_duplicate=False)}
    candidates = (f"{name}_{number}" for number in itertools.count(2))
    return name if name not in taken else next(candidate for candidate in candidates if candidate not in taken)


def add_module(graph_module: fx.GraphModule, name: str, module: nn.Module) -> str:
    """Add a module under `name`, or the first free name like it; return the name."""
    name = free_name(graph_module, name)
    graph_module.add_submodule(name, module)
    return name


def input_of(node: fx.Node) -> fx.Node:
    """Return the one node that `node` reads."""
    (source,) = node.all_input_nodes
    return source


def users_of(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that read `node`, in graph order."""
    return list(node.users)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of a node's result for the example input."""
    shape: tuple[int, ...] = node.meta["shape"]
    return shape


@torch.no_grad()
def shape_behind(module: nn.Module, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape of a module's result for tensors of these shapes, without computing it.

    It is the same in training, but a BatchNorm refuses to learn from a single value per channel, as one image may give.
    """
    tensors = {name: tensor.to("meta") for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    inputs = tuple(torch.empty(shape, device="meta") for shape in shapes)
    with evaluation_mode(module):
        result = torch.func.functional_call(module, tensors, inputs)
    return tuple(result.shape)
