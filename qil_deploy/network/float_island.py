"""Float islands: operations without an integer form that `allow_float` keeps in float between two 8-bit grids.

An island is one module or one function of the network. It reads values on 8-bit grids, computes in float, and what it
makes is put on an 8-bit grid of its own. What can be kept is whatever maps tensors to one tensor, image by image.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from qil_deploy.errors import UnsupportedModelError

Sign = Literal["any", "not negative", "of a product"]

_NOT_NEGATIVE: tuple[object, ...] = (
    nn.Sigmoid,
    nn.Hardsigmoid,
    nn.Softmax,
    nn.Softmax2d,
    nn.Softplus,
    torch.sigmoid,
    torch.softmax,
    F.sigmoid,
    F.hardsigmoid,
    F.softmax,
    F.softplus,
    "sigmoid",
    "softmax",
)
_PRODUCTS: tuple[object, ...] = (operator.mul, operator.imul, torch.mul, "mul", "mul_")
_WRITING_OPERATORS: tuple[object, ...] = tuple(
    getattr(operator, name) for name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow")
)
_PROBE_IMAGES = 3


class FloatIsland(nn.Module):
    """One operation of the network, kept in float.

    Args:
        body: the operation alone: one input per tensor that it reads.
        sign: what is known of its results; `of a product`: not negative where no input is.
        input_shapes: of its inputs, without the batch.
        in_place: whether the operation writes over its first input.
    """

    body: fx.GraphModule

    def __init__(
        self, body: fx.GraphModule, sign: Sign, input_shapes: Sequence[tuple[int, ...]], *, in_place: bool
    ) -> None:
        super().__init__()
        self.body = body
        self.sign: Sign = sign
        self.input_shapes = tuple(input_shapes)
        self.in_place = in_place

    def forward(self, *tensors: Tensor) -> Tensor:
        """Map float tensors [N, ...] to one [N, ...]."""
        result: Tensor = self.body(*(tensor.clone() if self.in_place else tensor for tensor in tensors))
        return result

    def is_signed(self, inputs: Sequence[bool]) -> bool:
        """Whether results can be negative, for inputs that can be."""
        return self.sign == "any" or (self.sign == "of a product" and any(inputs))

    def extra_repr(self) -> str:
        """Shapes."""
        return f"input_shapes={self.input_shapes}"


def island_of(root: nn.Module, node: fx.Node) -> FloatIsland:
    """Return the island that does what a node of a traced graph does.

    Args:
        root: holds the modules and parameters of the graph.
        node: with the shapes of results noted on its inputs (`graph`).

    Raises:
        UnsupportedModelError: the node does not map tensors to one float tensor, image by image.
    """
    sources = island_sources(node)
    for source in node.all_input_nodes:
        if "shape" not in source.meta:
            raise _refusal(root, node, f"reads {source.name!r}, which is a size or no single tensor")
    if not sources:
        raise _refusal(root, node, "reads no tensor that the network computes")
    if "shape" not in node.meta:
        raise _refusal(root, node, "returns something else than one tensor")
    in_place = _is_in_place(root, node)
    if in_place and any(node < user for user in sources[0].users):
        raise _refusal(root, node, f"writes over {sources[0].name!r}, which is read again later")
    shapes = [tuple(source.meta["shape"]) for source in sources]
    island = FloatIsland(_body(root, node, sources), _sign(root, node), [s[1:] for s in shapes], in_place=in_place)
    _check_images_are_apart(root, node, island, shapes)
    return island


def island_sources(node: fx.Node) -> list[fx.Node]:
    """Return the tensors that a node reads, each once, without parameters of the network."""
    return [source for source in node.all_input_nodes if "shape" in source.meta and source.op != "get_attr"]


def _body(root: nn.Module, node: fx.Node, sources: Sequence[fx.Node]) -> fx.GraphModule:
    """Return a graph of the one node; parameters that it reads become the graph's own."""
    graph, holder = fx.Graph(), nn.Module()
    copies = {source: graph.placeholder(f"x{index}") for index, source in enumerate(sources)}
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            name, tensor = f"constant{len(copies)}", _attribute(root, str(source.target))
            if isinstance(tensor, nn.Parameter):
                holder.register_parameter(name, tensor)
            else:
                holder.register_buffer(name, tensor)
            copies[source] = graph.get_attr(name)
    result = graph.node_copy(node, lambda source: copies[source])
    if node.op == "call_module":
        holder.add_module("operation", root.get_submodule(str(node.target)))
        result.target = "operation"
    graph.output(result)
    return fx.GraphModule(holder, graph)


def _attribute(root: nn.Module, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    tensor: Tensor = getattr(root.get_submodule(owner), name)
    return tensor


def _operation(root: nn.Module, node: fx.Node) -> object:
    """Return the type of the module, the function, or the name of the method that a node calls."""
    return type(root.get_submodule(str(node.target))) if node.op == "call_module" else node.target


def _sign(root: nn.Module, node: fx.Node) -> Sign:
    operation = _operation(root, node)
    if operation in _NOT_NEGATIVE:
        return "not negative"
    only_tensors = all(isinstance(argument, fx.Node) and argument.op != "get_attr" for argument in node.args)
    return "of a product" if operation in _PRODUCTS and only_tensors else "any"


def _is_in_place(root: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        modules = root.get_submodule(str(node.target)).modules()
        return any(getattr(module, "inplace", False) is True for module in modules)
    if isinstance(node.target, str):
        return node.target.endswith("_") and not node.target.endswith("__")
    return node.target in _WRITING_OPERATORS or _argument_in_place(node)


def _argument_in_place(node: fx.Node) -> bool:
    """Whether a function is told by an argument to write over its input."""
    if not callable(node.target):
        return False
    try:
        arguments = inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments
    except (ValueError, TypeError):  # functions of C++, which tell it by their name
        return getattr(node.target, "__name__", "").endswith("_")
    return bool(arguments.get("inplace", False))


@torch.no_grad()
def _check_images_are_apart(
    root: nn.Module, node: fx.Node, island: FloatIsland, shapes: Sequence[tuple[int, ...]]
) -> None:
    """Run an island on a few images at once and one by one: the same has to come out, in the shape of the node.

    Raises:
        UnsupportedModelError: something else comes out.
    """
    training = island.training
    island.eval()
    like = next(island.parameters(), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(_PROBE_IMAGES, *shape[1:], generator=generator).to(like) for shape in shapes]
    try:
        together = island(*inputs)
        apart = [island(*(x[[image]] for x in inputs)) for image in range(_PROBE_IMAGES)]
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise _refusal(root, node, f"does not run on another number of images ({error})") from error
    if not together.is_floating_point():
        raise _refusal(root, node, "makes integers")
    if tuple(together.shape) != (_PROBE_IMAGES, *node.meta["shape"][1:]):
        raise _refusal(root, node, f"makes a tensor of shape {list(together.shape)} of {_PROBE_IMAGES} images")
    if not torch.allclose(together, torch.cat(apart), rtol=1e-3, atol=1e-3, equal_nan=True):
        raise _refusal(root, node, "does not compute each image for itself, or draws random numbers")
    island.train(training)


def _refusal(root: nn.Module, node: fx.Node, reason: str) -> UnsupportedModelError:
    if node.op == "call_module":
        what = f"module {node.target!r} ({type(root.get_submodule(str(node.target))).__name__})"
    else:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
        what = f"operation {name!r} (node {node.name!r})"
    return UnsupportedModelError(
        f"{what} cannot be kept in float: it {reason}; allow_float keeps what maps tensors to one tensor of floats, "
        "image by image."
    )
