"""Rebuild calls of a captured network by the table of operators: as plain modules, or with a reason for refusal."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from .captured_call import Call, CallError, Computed, Data, Modules
from .captured_graph import CapturedGraph
from .operators import rebuilt_by

_VIEWS = (
    torch.ops.aten.view.default,
    torch.ops.aten.reshape.default,
    torch.ops.aten.unsqueeze.default,
    torch.ops.aten.alias.default,
)


def modules_of_call(
    captured: CapturedGraph, node: fx.Node, keeps: Sequence[Callable[[object, Modules], bool]]
) -> Modules | CallError:
    """Return the plain modules that replace a call, or the reason why there are none.

    Args:
        captured: the network.
        node: a tensor that a call makes.
        keeps: tells whether an ATen operator with these modules is kept in float anyway.
    """
    call_node, index = call_of(node)
    function = rebuilt_by(call_node.target, index)
    try:
        modules = None if function is None else function(_call(captured, node, call_node, index))
        if modules is None or any(keep(call_node.target, modules) for keep in keeps):
            raise CallError("")
        return modules
    except CallError as error:
        return error


def _call(captured: CapturedGraph, node: fx.Node, call_node: fx.Node, index: int) -> Call:
    target: Any = call_node.target
    given = dict(zip((argument.name for argument in target._schema.arguments), call_node.args, strict=False))
    defaults = {a.name: a.default_value for a in target._schema.arguments}
    arguments = {
        name: fx.node.map_arg(value, partial(_value, captured))
        for name, value in (defaults | given | call_node.kwargs).items()
    }
    return Call(
        arguments=arguments,
        shape=captured.shape(node),
        module=captured.origin(call_node).module,
        result=index,
    )


def _value(captured: CapturedGraph, source: fx.Node) -> Any:  # noqa: ANN401 - a tensor, what stands for one, or a number
    if source in captured.data:
        return Data(captured.shape(source))
    if source in captured.tensors:
        return captured.tensors[source][1]
    value = source.meta.get("val")
    return (
        Computed(_parameters_of(captured, source), _view_of(captured, source)) if isinstance(value, Tensor) else value
    )


def _view_of(captured: CapturedGraph, node: fx.Node) -> Tensor | None:
    """Return the value of a call that only reshapes a parameter, buffer or constant; a parameter as one."""
    shape, source = captured.shape(node), node
    while source.target in _VIEWS:
        source = source.all_input_nodes[0]
    if source not in captured.tensors:
        return None
    tensor = captured.tensors[source][1]
    view = tensor.detach().reshape(shape)
    return nn.Parameter(view, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else view


def _parameters_of(captured: CapturedGraph, node: fx.Node) -> tuple[str, ...]:
    pending, found = [node], dict[str, None]()
    while pending:
        source = pending.pop()
        if source in captured.tensors:
            found[captured.tensors[source][0]] = None
        pending.extend(source.all_input_nodes)
    return tuple(sorted(found))


def call_of(node: fx.Node) -> tuple[fx.Node, int]:
    """Return the call that makes a value, and the value's index among its results."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        index: Any = node.args[1]
        return node.args[0], int(index)
    return node, 0
