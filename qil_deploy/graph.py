"""Trace a network to a graph of a few known modules, or refuse it with a sentence.

After `trace` every node is the input, the output, or a call of one of these modules (functional forms are
replaced by them), each named like the module or operation it came from:

    conv, linear      torch.nn.Conv2d, Linear
    bn                BatchNorm2d
    relu              ReLU
    add               layers.Add
    pool              layers.GlobalAveragePool
    pass              MaxPool2d, Flatten, Dropout: what they return is on the grid of what they read
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from .errors import UnsupportedModelError
from .layers import Add, GlobalAveragePool

Kind = Literal["input", "output", "conv", "linear", "bn", "relu", "add", "pool", "pass"]

_KINDS: tuple[tuple[type[nn.Module], Kind], ...] = (
    (nn.Conv2d, "conv"),
    (nn.Linear, "linear"),
    (nn.BatchNorm2d, "bn"),
    (nn.ReLU, "relu"),
    (Add, "add"),
    (GlobalAveragePool, "pool"),
    (nn.MaxPool2d, "pass"),
    (nn.Flatten, "pass"),
    (nn.Dropout, "pass"),
)
_SUPPORTED = (
    "Conv2d, Linear, BatchNorm2d, ReLU, addition of two tensors, global average pooling, MaxPool2d, Flatten, Dropout"
)


def trace(model: nn.Module, example_input: Tensor) -> fx.GraphModule:
    """Trace `model` to a graph of known modules; the modules are shared with `model`.

    Args:
        model: a float network with one input and one output.
        example_input: float32 [N, C, H, W]; only its shape matters.

    Raises:
        UnsupportedModelError: the network cannot be traced, or holds a module or operation that cannot be lowered.
    """
    try:
        graph_module = fx.symbolic_trace(model)
    except Exception as error:  # any Python of the user's runs during tracing
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be traced by torch.fx: {error}. Move control flow that depends on "
            "tensor values out of forward."
        ) from error
    for node in list(graph_module.graph.nodes):
        _normalize(graph_module, node)
    graph_module.graph.eliminate_dead_code()
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()
    _check_inputs(graph_module)
    _set_pool_windows(graph_module, example_input)
    return graph_module


def kind_of(graph_module: fx.GraphModule, node: fx.Node) -> Kind:
    """Return the kind of a node of a traced graph.

    Raises:
        UnsupportedModelError: none of the known kinds, naming module and operation.
    """
    if node.op == "placeholder":
        return "input"
    if node.op == "output":
        return "output"
    if node.op == "call_module":
        module = module_of(graph_module, node)
        for cls, kind in _KINDS:
            if isinstance(module, cls):
                return kind
        raise UnsupportedModelError(
            f"module {node.target!r} ({type(module).__name__}) cannot be lowered; supported are {_SUPPORTED}."
        )
    raise UnsupportedModelError(
        f"operation {_name_of(node.target)!r} (node {node.name!r}) cannot be lowered; supported are {_SUPPORTED}."
    )


def module_of(graph_module: fx.GraphModule, node: fx.Node) -> nn.Module:
    """Return the module that a `call_module` node calls."""
    return graph_module.get_submodule(str(node.target))


def input_of(node: fx.Node) -> fx.Node:
    """Return the one node that `node` reads."""
    (source,) = node.all_input_nodes
    return source


def users_of(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that read `node`, in graph order."""
    return list(node.users)


def replace_with_module(
    graph_module: fx.GraphModule, node: fx.Node, name: str, module: nn.Module, args: tuple[fx.Node, ...]
) -> fx.Node:
    """Put a call of `module`, registered as `name`, in the place of `node`; return the new node."""
    graph_module.add_submodule(name, module)
    with graph_module.graph.inserting_after(node):
        new = graph_module.graph.call_module(name, args)
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    graph_module.graph.erase_node(node)
    return new


def _name_of(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def _normalize(graph_module: fx.GraphModule, node: fx.Node) -> None:
    """Replace a functional operation, or a module with a plainer equivalent, by a known module."""
    if node.op in ("call_function", "call_method"):
        for module in _modules_for(node):
            name = f"{node.name}_flat" if isinstance(module, nn.Flatten) and node.target == "mean" else node.name
            sources = tuple(argument for argument in node.args if isinstance(argument, fx.Node))
            node = replace_with_module(graph_module, node, name, module, sources)
    elif node.op == "call_module":
        module = module_of(graph_module, node)
        if isinstance(module, nn.Identity):
            node.replace_all_uses_with(input_of(node))
            graph_module.graph.erase_node(node)
        elif isinstance(module, nn.AdaptiveAvgPool2d) and _is_one(module.output_size):
            graph_module.add_submodule(str(node.target), GlobalAveragePool())


def _modules_for(node: fx.Node) -> list[nn.Module]:
    """Return the modules, in order of application, that do what a functional node does; none if there are none."""
    target, arguments = node.target, dict(zip(("x", "a", "b"), node.args, strict=False)) | dict(node.kwargs)
    if target in (F.relu, torch.relu, "relu", "relu_"):
        return [nn.ReLU()]
    if target in (operator.add, operator.iadd, torch.add, "add", "add_") and len(node.all_input_nodes) == 2:
        return [Add()] if "alpha" not in node.kwargs and len(node.args) == 2 else []
    if target is F.adaptive_avg_pool2d and _is_one(arguments.get("a", arguments.get("output_size"))):
        return [GlobalAveragePool()]
    if target == "mean" and _dimensions(arguments.get("a", arguments.get("dim"))) == {2, 3}:
        return [GlobalAveragePool()] + ([] if arguments.get("b", arguments.get("keepdim")) else [nn.Flatten(1)])
    if target in (torch.flatten, "flatten") and arguments.get("a", arguments.get("start_dim")) == 1:
        return [nn.Flatten(1)]
    if target is F.max_pool2d:
        names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
        options = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
        return [nn.MaxPool2d(**{name: options[name] for name in names if options.get(name) is not None})]
    if target is F.dropout:
        return [nn.Dropout(float(arguments.get("a", arguments.get("p", 0.5))))]
    return []


def _is_one(size: Any) -> bool:
    return size in (1, (1, 1), [1, 1])


def _dimensions(dim: Any) -> set[int]:
    if not isinstance(dim, Sequence):
        return set()
    return {value % 4 for value in dim}


def _check_inputs(graph_module: fx.GraphModule) -> None:
    inputs = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    outputs = graph_module.graph.output_node().all_input_nodes
    if len(inputs) != 1 or len(outputs) != 1:
        raise UnsupportedModelError(
            f"the network has {len(inputs)} inputs and {len(outputs)} outputs; one image in and one tensor of logits "
            "out are supported."
        )
    for node in graph_module.graph.nodes:
        kind_of(graph_module, node)


def _set_pool_windows(graph_module: fx.GraphModule, example_input: Tensor) -> None:
    training = graph_module.training
    graph_module.eval()
    parameter = next(graph_module.parameters())
    try:
        ShapeProp(graph_module).propagate(example_input.to(parameter.device, parameter.dtype))
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"the network does not run on an input of shape {list(example_input.shape)}: {error.__cause__ or error}"
        ) from error
    graph_module.train(training)
    for node in graph_module.graph.nodes:
        if node.op == "call_module" and isinstance(pool := module_of(graph_module, node), GlobalAveragePool):
            height, width = input_of(node).meta["tensor_meta"].shape[2:]
            pool.window = height * width


