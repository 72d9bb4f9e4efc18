"""Cut operations without an integer form out of a captured graph, as an island with a graph of its own."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from qil_deploy.errors import UnsupportedModelError

from .captured_graph import CapturedGraph, operation_name
from .float_island import FloatIsland, Sign

_NOT_NEGATIVE = ("sigmoid", "hardsigmoid", "softmax", "softplus", "abs", "exp")
_TRAINED = ("batch_norm", "native_batch_norm_legit_no_training", "dropout", "feature_dropout", "alpha_dropout")
_PROBE_IMAGES = 3


def cut_out(captured: CapturedGraph, part: Sequence[fx.Node]) -> tuple[FloatIsland, list[fx.Node], fx.Node]:
    """Return an island that replaces some nodes, the nodes that it reads, and the node whose value it makes.

    Args:
        captured: the whole graph.
        part: nodes of one PyTorch module, or one operation; parameters that they read become the island's own.

    Raises:
        UnsupportedModelError: they do not map tensors to one float tensor, image by image.
    """
    inside = set(part)
    sources = list(dict.fromkeys(s for node in part for s in node.all_input_nodes if s in captured.data - inside))
    tensors = [node for node in part if isinstance(node.meta["val"], Tensor)]
    results = [node for node in tensors if any(user not in inside for user in node.users)]
    if not sources:
        raise _refusal(captured, part[-1], "reads no tensor that the network computes")
    learning = next((operation_name(node) for node in part if operation_name(node) in _TRAINED), None)
    if learning is not None:
        raise _refusal(captured, part[-1], f"holds {learning}, which does something else in training")
    if len(results) != 1:
        raise _refusal(captured, part[-1], "returns something else than one tensor")
    if any(not isinstance(source.meta["val"], Tensor) for source in sources):
        raise _refusal(captured, part[-1], "reads something else than single tensors")
    shapes = [captured.shape(source)[1:] for source in sources]
    island = FloatIsland(_Body(captured, part, sources, results[0]).build(), _sign(captured, results[0]), shapes)
    _check_images_are_apart(captured, results[0], island)
    return island, sources, results[0]


class _Body:
    """Copies nodes into a graph of their own."""

    def __init__(
        self, captured: CapturedGraph, part: Sequence[fx.Node], sources: Sequence[fx.Node], result: fx.Node
    ) -> None:
        self.captured, self.part, self.result = captured, part, result
        self.graph, self.holder = fx.Graph(), nn.Module()
        self.copies = {source: self.graph.placeholder(f"x{index}") for index, source in enumerate(sources)}
        self.first = next(iter(self.copies.values()))

    def build(self) -> fx.GraphModule:
        """Return the graph."""
        for node in self.part:
            self._copy(node)
        self.graph.output(self.copies[self.result])
        self.graph.eliminate_dead_code()
        return fx.GraphModule(self.holder, self.graph)

    def _copy(self, node: fx.Node) -> fx.Node:
        """Copy a node and its predecessors that depend on no image, or on the number of images alone."""
        if node in self.copies:
            return self.copies[node]
        if node in self.captured.tensors:
            copied = self._constant(*self.captured.tensors[node], self.captured.origin(self.part[-1]).path)
        elif node.target is torch.ops.aten.sym_size.int and node.args[1] == 0:
            copied = self.graph.call_function(torch.ops.aten.sym_size.int, (self.first, 0))
        elif node.target is operator.getitem and isinstance(node.args[0], fx.Node) and _is_split(node.args[0]):
            copied = self._slice(node.args[0], node)
        else:
            for source in node.all_input_nodes:
                self._copy(source)
            copied = self.graph.node_copy(node, lambda source: self.copies[source])
            if node.target is torch.ops.aten.view.default:  # codes may lie in memory in another order
                copied.target = torch.ops.aten.reshape.default
        self.copies[node] = copied
        return copied

    def _slice(self, split: fx.Node, piece: fx.Node) -> fx.Node:
        """Write one piece of a split tensor as an operation of its own."""
        target, pieces = split.target, split.meta["val"]
        names = [argument.name for argument in target._schema.arguments]  # type: ignore[union-attr] # an ATen operator
        given: dict[str, Any] = dict(zip(names, split.args, strict=False)) | split.kwargs
        index: Any = piece.args[1]
        dim = given.get("dim", 0)
        sizes = [int(each.shape[dim]) for each in pieces]
        start = sum(sizes[:index])
        source = self._copy(split.all_input_nodes[0])
        return self.graph.call_function(torch.ops.aten.slice.Tensor, (source, dim, start, start + sizes[index]))

    def _constant(self, name: str, tensor: Tensor, path: str) -> fx.Node:
        """Make a parameter or buffer the island's own; those of the module that it replaces keep their names."""
        own = name.removeprefix(f"{path}.") if path and name.startswith(f"{path}.") else ""
        holder, target = self.holder, own or f"constant{len(self.copies)}"
        if own and "." not in own:
            if not hasattr(holder, "operation"):
                holder.add_module("operation", nn.Module())
            holder, target = holder.get_submodule("operation"), f"operation.{own}"
        else:
            target = target.replace(".", "_")
        leaf = target.rpartition(".")[2]
        if isinstance(tensor, nn.Parameter):
            holder.register_parameter(leaf, tensor)
        else:
            holder.register_buffer(leaf, tensor)
        return self.graph.get_attr(target)


def _is_split(node: fx.Node) -> bool:
    return operation_name(node) in ("chunk", "split", "split_with_sizes")


def _sign(captured: CapturedGraph, result: fx.Node) -> Sign:
    if operation_name(result) in _NOT_NEGATIVE:
        return "not negative"
    product = result.target is torch.ops.aten.mul.Tensor and all(source in captured.data for source in result.args)
    return "of a product" if product else "any"


@torch.no_grad()
def _check_images_are_apart(captured: CapturedGraph, node: fx.Node, island: FloatIsland) -> None:
    """Run an island on some images together and one by one: results must agree, and have the shape of the node.

    Raises:
        UnsupportedModelError: something else comes out.
    """
    island.eval()
    like = next(island.parameters(), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(_PROBE_IMAGES, *shape, generator=generator).to(like) for shape in island.input_shapes]
    try:
        together = island(*inputs)
        apart = [island(*(x[[image]] for x in inputs)) for image in range(_PROBE_IMAGES)]
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise _refusal(captured, node, f"does not run on another number of images ({error})") from error
    if not together.is_floating_point():
        raise _refusal(captured, node, "makes integers")
    if tuple(together.shape) != (_PROBE_IMAGES, *captured.shape(node)[1:]):
        raise _refusal(captured, node, f"makes a tensor of shape {list(together.shape)} of {_PROBE_IMAGES} images")
    if not torch.allclose(together, torch.cat(apart), rtol=1e-3, atol=1e-3, equal_nan=True):
        raise _refusal(captured, node, "does not compute each image for itself")


def _refusal(captured: CapturedGraph, node: fx.Node, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{captured.describe(node)} cannot be kept in float: it {reason}; allow_float keeps what maps tensors to one "
        "tensor of floats, image by image."
    )
