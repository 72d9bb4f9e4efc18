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

import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
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
        UnsupportedModelError: the network cannot be traced, or holds a module or operation that cannot be
        lowered.
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
            if isinstance(module, cls) and not _keeps_dimensions(module):
                return kind
        raise UnsupportedModelError(
            f"module {node.target!r} ({type(module).__name__}) cannot be lowered; supported are {_SUPPORTED}."
        )
    raise UnsupportedModelError(
        f"operation {_name_of(node.target)!r} (node {node.name!r}) cannot be lowered; supported are {_SUPPORTED}."
    )


def _keeps_dimensions(module: nn.Module) -> bool:
    """Whether a module flattens less than a whole image, which ONNX's Flatten cannot do."""
    return isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1)


def module_of(graph_module: fx.GraphModule, node: fx.Node) -> nn.Module:
    """Return the module that a `call_module` node calls."""
    return graph_module.get_submodule(str(node.target))


def free_name(graph_module: fx.GraphModule, name: str) -> str:
    """Return `name`, or with a number behind it the first name that no module of the graph has yet."""
    taken = {existing for existing, _ in graph_module.named_modules(remove_duplicate=False)}
    candidates = (f"{name}_{number}" for number in itertools.count(2))
    return name if name not in taken else next(candidate for candidate in candidates if candidate not in taken)


def input_of(node: fx.Node) -> fx.Node:
    """Return the one node that `node` reads."""
    (source,) = node.all_input_nodes
    return source


def users_of(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that read `node`, in graph order."""
    return list(node.users)


def _name_of(target: object) -> str:
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))


def _normalize(graph_module: fx.GraphModule, node: fx.Node) -> None:
    """Replace a functional operation, or a module with a plainer equivalent, by a known module."""
    if node.op in ("call_function", "call_method"):
        _replace_function(graph_module, node, _modules_for(node))
    elif node.op == "call_module":
        module = module_of(graph_module, node)
        if isinstance(module, nn.Identity):
            node.replace_all_uses_with(input_of(node))
            graph_module.graph.erase_node(node)
        elif isinstance(module, nn.AdaptiveAvgPool2d) and _is_one(module.output_size):
            graph_module.add_submodule(str(node.target), GlobalAveragePool())


def _replace_function(graph_module: fx.GraphModule, node: fx.Node, modules: list[nn.Module]) -> None:
    """Put calls of `modules`, one after the other, in the place of a functional node, under its name."""
    end = node
    sources = tuple(argument for argument in node.args if isinstance(argument, fx.Node))
    for index, module in enumerate(modules):
        name = free_name(graph_module, node.name if index == 0 else f"{node.name}_{index}")
        graph_module.add_submodule(name, module)
        with graph_module.graph.inserting_after(end):
            end = graph_module.graph.call_module(name, sources)
        sources = (end,)
    if modules:
        node.replace_all_uses_with(end)
        graph_module.graph.erase_node(node)


def _modules_for(node: fx.Node) -> list[nn.Module]:
    """Return the modules, in order of application, that do what a functional node does; none if there are none."""
    function = _FUNCTIONS.get(node.target)
    return [] if function is None else function(node)


def _argument(node: fx.Node, position: int, name: str, default: object = None) -> object:
    """Return an argument of a call, whether it was given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _relu(_node: fx.Node) -> list[nn.Module]:
    return [nn.ReLU()]


def _add(node: fx.Node) -> list[nn.Module]:
    plain = len(node.args) == 2 and all(isinstance(operand, fx.Node) for operand in node.args)
    return [Add()] if plain and "alpha" not in node.kwargs else []


def _adaptive_pool(node: fx.Node) -> list[nn.Module]:
    return [GlobalAveragePool()] if _is_one(_argument(node, 1, "output_size")) else []


def _mean(node: fx.Node) -> list[nn.Module]:
    dimensions = _argument(node, 1, "dim")
    if not isinstance(dimensions, Sequence) or {value % 4 for value in dimensions} != {2, 3}:
        return []
    flatten: list[nn.Module] = [] if _argument(node, 2, "keepdim") else [nn.Flatten(1)]
    return [GlobalAveragePool(), *flatten]


def _flatten(node: fx.Node) -> list[nn.Module]:
    whole = _argument(node, 1, "start_dim") == 1 and _argument(node, 2, "end_dim", -1) == -1
    return [nn.Flatten(1)] if whole else []


def _max_pool(node: fx.Node) -> list[nn.Module]:
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    options: dict[str, Any] = {
        name: value
        for position, name in enumerate(names, start=1)
        if (value := _argument(node, position, name)) is not None
    }
    return [nn.MaxPool2d(**options)]


def _dropout(node: fx.Node) -> list[nn.Module]:
    share = _argument(node, 1, "p", 0.5)
    return [nn.Dropout(share)] if isinstance(share, float) else []


_FUNCTIONS: dict[object, Callable[[fx.Node], list[nn.Module]]] = {
    F.relu: _relu,
    torch.relu: _relu,
    "relu": _relu,
    "relu_": _relu,
    operator.add: _add,
    operator.iadd: _add,
    torch.add: _add,
    "add": _add,
    "add_": _add,
    F.adaptive_avg_pool2d: _adaptive_pool,
    "mean": _mean,
    torch.mean: _mean,
    torch.flatten: _flatten,
    "flatten": _flatten,
    F.max_pool2d: _max_pool,
    F.dropout: _dropout,
}


def _is_one(size: object) -> bool:
    return size in (1, (1, 1), [1, 1])


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


class _PoolWindows(fx.Interpreter):
    """Runs a graph and notes how many pixels each global average pool averages."""

    def call_module(self, target: fx.node.Target, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        """Note the window of a pool, then run the module."""
        module = self.fetch_attr(str(target))
        if isinstance(module, GlobalAveragePool):
            module.window = args[0].shape[2] * args[0].shape[3]
        return super().call_module(target, args, kwargs)


@torch.no_grad()
def _set_pool_windows(graph_module: fx.GraphModule, example_input: Tensor) -> None:
    training = graph_module.training
    graph_module.eval()
    parameter = next(graph_module.parameters(), example_input)
    interpreter = _PoolWindows(graph_module)
    interpreter.extra_traceback = False  # it would be added to the message
    try:
        interpreter.run(example_input.to(parameter.device, parameter.dtype))
    except (RuntimeError, ValueError) as error:
        raise UnsupportedModelError(
            f"the network does not run on an input of shape {list(example_input.shape)}: {error}"
        ) from error
    graph_module.train(training)
