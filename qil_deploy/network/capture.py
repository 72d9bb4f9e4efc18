"""Trace a network to a graph of a few known modules, or refuse it with a sentence.

After `trace` every node is the input, the output, or a call of one of these modules (functional forms are
replaced by them, see `known_modules`), each named like the module or operation it came from:

    conv, linear      torch.nn.Conv2d, Linear
    bn                BatchNorm2d, BatchNorm1d
    relu              ReLU, ReLU6, Hardtanh from 0
    add               layers.Add
    pool              layers.GlobalAveragePool
    average           AvgPool2d
    concat            layers.Concat
    standalone        layers.Standalone
    pass              MaxPool2d, Upsample, Flatten, Dropout: what they return is on the grid of what they read
    float             float_island.FloatIsland, with `allow_float` only: anything else that maps tensors to one tensor

Every node carries the shape of its result for the example input in `node.meta["shape"]`.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from qil_deploy.errors import UnsupportedModelError
from qil_deploy.untrusted_text import excerpt

from .float_island import FloatIsland, island_of, island_sources
from .known_modules import modules_for_function, modules_for_module
from .layers import Add, Concat, GlobalAveragePool, Standalone

Kind = Literal[
    "input", "output", "conv", "linear", "bn", "relu", "add", "pool", "average", "concat", "standalone", "pass", "float"
]

_KINDS: tuple[tuple[type[nn.Module], Kind], ...] = (
    (nn.Conv2d, "conv"),
    (nn.Linear, "linear"),
    (nn.BatchNorm2d, "bn"),
    (nn.BatchNorm1d, "bn"),
    (nn.ReLU, "relu"),
    (nn.Hardtanh, "relu"),
    (Add, "add"),
    (GlobalAveragePool, "pool"),
    (nn.AvgPool2d, "average"),
    (Concat, "concat"),
    (Standalone, "standalone"),
    (FloatIsland, "float"),
    (nn.MaxPool2d, "pass"),
    (nn.Upsample, "pass"),
    (nn.Flatten, "pass"),
    (nn.Dropout, "pass"),
    (nn.Dropout2d, "pass"),
)
_SUPPORTED = (
    "Conv2d, Linear, BatchNorm, ReLU, ReLU6, addition of two tensors, concatenation of channels, average and maximum "
    "pooling, nearest-neighbour Upsample, Flatten, Dropout"
)
_HINT = "or keep it in float with allow_float"


def trace(model: nn.Module, example_input: Tensor, *, allow_float: bool = False) -> fx.GraphModule:
    """Trace `model` to a graph of known modules; the modules are shared with `model`.

    Args:
        model: a float network with one input and one output.
        example_input: float32 [N, C, H, W]; only its shape matters.
        allow_float: whether what cannot be lowered becomes a `FloatIsland`.

    Raises:
        UnsupportedModelError: the network cannot be traced, does not run on such an input, or holds a module or
            operation that cannot be lowered, nor kept in float if that is allowed.
    """
    try:
        graph_module = fx.symbolic_trace(model)
    except Exception as error:  # any Python of the user's runs during tracing
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be traced by torch.fx: {error}. Move control flow that depends on "
            "tensor values out of forward."
        ) from error
    _check_inputs(graph_module)
    _note_results(graph_module, example_input)
    for node in list(graph_module.graph.nodes):
        _normalize(graph_module, node)
    graph_module.graph.eliminate_dead_code()
    if allow_float:
        _keep_rest_in_float(graph_module)
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()
    for node in graph_module.graph.nodes:
        if "shape" in node.meta or node.op == "call_module":  # where a size is left, what reads it is refused
            kind_of(graph_module, node)
    _note_results(graph_module, example_input)
    logits = shape_of(graph_module.graph.output_node())
    if len(logits) != 2:
        raise UnsupportedModelError(
            f"the network returns a tensor of shape {list(logits)} for one of shape {list(example_input.shape)}; it "
            "has to return one row of logits per image."
        )
    _set_pool_windows(graph_module)
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
        kind = next((kind for cls, kind in _KINDS if isinstance(module, cls)), None)
        reason = _refusal(module)
        if kind is None or reason:
            raise UnsupportedModelError(
                f"module {node.target!r} ({type(module).__name__}) cannot be lowered{reason}; "
                f"supported are {_SUPPORTED}, {_HINT}."
            )
        return kind
    raise UnsupportedModelError(
        f"operation {_name_of(node.target)!r} (node {node.name!r}) cannot be lowered; supported are {_SUPPORTED}, "
        f"{_HINT}."
    )


def _refusal(module: nn.Module) -> str:
    """Return what about a module of a known type cannot be lowered, or nothing."""
    reason = ""
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
        reason = "keeps more dimensions than the batch"
    elif isinstance(module, nn.Hardtanh) and (module.min_val != 0 or not module.max_val > 0):
        reason = f"clips to {module.min_val}..{module.max_val}, not from 0"
    elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.running_mean is None:
        reason = "has no running statistics"
    elif isinstance(module, nn.AvgPool2d):
        if module.ceil_mode:
            reason = "has windows that reach past the image"
        elif module.padding not in (0, (0, 0)) and not module.count_include_pad:
            reason = "divides by another number at the border (count_include_pad=False)"
    elif isinstance(module, nn.MaxPool2d) and module.return_indices:
        reason = "returns indices"
    elif isinstance(module, nn.Upsample) and not _copies_pixels(module):
        reason = "does not repeat each pixel a whole number of times"
    return f": it {reason}" if reason else ""


def _copies_pixels(module: nn.Upsample) -> bool:
    factors = module.scale_factor if isinstance(module.scale_factor, tuple) else (module.scale_factor,) * 2
    return module.mode == "nearest" and all(factor is not None and float(factor).is_integer() for factor in factors)


def module_of(graph_module: fx.GraphModule, node: fx.Node) -> nn.Module:
    """Return the module that a `call_module` node calls."""
    return graph_module.get_submodule(str(node.target))


def free_name(graph_module: fx.GraphModule, name: str) -> str:
    """Return `name`, or with a number behind it the first name that no module of the graph has yet."""
    taken = {existing for existing, _ in graph_module.named_modules(remove_duplicate=False)}
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


def _name_of(target: object) -> str:
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))


def _normalize(graph_module: fx.GraphModule, node: fx.Node) -> None:
    """Replace a functional operation, or a module with a plainer equivalent, by known modules."""
    if node.op in ("call_function", "call_method"):
        _replace(graph_module, node, modules_for_function(node), node.name)
    elif node.op == "call_module":
        module = module_of(graph_module, node)
        plain = modules_for_module(node, module)
        if len(plain) > 1 or isinstance(plain[0], nn.Identity):
            _replace(graph_module, node, plain, node.name)
        elif plain[0] is not module:
            # Other calls of the module may need another window.
            called_once = sum(other.target == node.target for other in graph_module.graph.nodes) == 1
            node.target = str(node.target) if called_once else free_name(graph_module, str(node.target))
            graph_module.add_submodule(node.target, plain[0])


def _replace(graph_module: fx.GraphModule, node: fx.Node, modules: list[nn.Module], name: str) -> None:
    """Put calls of `modules`, one after the other, in the place of a node; an Identity needs no call."""
    if not modules:
        return
    sources: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), sources.append)
    end, inputs = node, tuple(source for source in sources if "shape" in source.meta)
    for index, module in enumerate(module for module in modules if not isinstance(module, nn.Identity)):
        new_name = add_module(graph_module, name if index == 0 else f"{name}_{index}", module)
        with graph_module.graph.inserting_after(end):
            end = graph_module.graph.call_module(new_name, inputs)
        end.meta["shape"] = node.meta["shape"]
        inputs = (end,)
    node.replace_all_uses_with(inputs[0])
    graph_module.graph.erase_node(node)


def _keep_rest_in_float(graph_module: fx.GraphModule) -> None:
    """Put an island in the place of every call that `kind_of` refuses; parameters that only they read go with them."""
    for node in list(graph_module.graph.nodes):
        is_call = node.op in ("call_function", "call_method") and "shape" in node.meta
        if (is_call or node.op == "call_module") and not _is_known(graph_module, node):
            _keep_in_float(graph_module, node)
    graph_module.graph.eliminate_dead_code()


def _is_known(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    try:
        kind_of(graph_module, node)
    except UnsupportedModelError:
        return False
    return True


def _keep_in_float(graph_module: fx.GraphModule, node: fx.Node) -> None:
    """Put an island in the place of a node, under the name of its module if nothing else calls that."""
    island = island_of(graph_module, node)
    name = str(node.target) if node.op == "call_module" else node.name
    calls = sum(other.target == node.target for other in graph_module.graph.nodes)
    if node.op != "call_module" or calls > 1:
        name = free_name(graph_module, name)
    graph_module.add_submodule(name, island)
    with graph_module.graph.inserting_after(node):
        new = graph_module.graph.call_module(name, tuple(island_sources(node)))
    new.meta["shape"] = node.meta["shape"]
    node.replace_all_uses_with(new)
    graph_module.graph.erase_node(node)


def _check_inputs(graph_module: fx.GraphModule) -> None:
    inputs = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    outputs = graph_module.graph.output_node().args[0]
    number = 1 if isinstance(outputs, fx.Node) else len(graph_module.graph.output_node().all_input_nodes)
    if len(inputs) != 1 or number != 1:
        raise UnsupportedModelError(
            f"the network has {len(inputs)} inputs and {number} outputs; one image in and one tensor of logits "
            "out are supported."
        )


class _Results(fx.Interpreter):
    """Runs a graph and notes on each node the shape of its result, or the result itself where it is no tensor."""

    def run_node(self, node: fx.Node) -> object:
        """Run a node and note what came out."""
        result = super().run_node(node)
        if isinstance(result, Tensor):
            node.meta["shape"] = tuple(result.shape)
        else:
            node.meta["value"] = result
        return result


@torch.no_grad()
def _note_results(graph_module: fx.GraphModule, example_input: Tensor) -> None:
    training = graph_module.training
    graph_module.eval()
    parameter = next(graph_module.parameters(), example_input)
    interpreter = _Results(graph_module)
    interpreter.extra_traceback = False  # it would be added to the message
    try:
        interpreter.run(example_input.to(parameter.device, parameter.dtype))
    except (RuntimeError, ValueError) as error:
        raise UnsupportedModelError(
            f"the network does not run on an input of shape {list(example_input.shape)}: {excerpt(str(error))}."
        ) from error
    graph_module.train(training)


def _set_pool_windows(graph_module: fx.GraphModule) -> None:
    for node in graph_module.graph.nodes:
        module: Any = module_of(graph_module, node) if node.op == "call_module" else None
        if isinstance(module, GlobalAveragePool):
            module.window = math.prod(shape_of(input_of(node))[2:])
