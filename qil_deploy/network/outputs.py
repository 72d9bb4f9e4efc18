"""Outputs of a network: one tensor, or several, named after the keys and fields that hold them.

The output node of a graph returns the one tensor, or a tuple of all; their containers are in its `meta`,
so that a prepared model returns what the user's network did. One tensor is returned without its container.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from qil_deploy.errors import DataError, UnsupportedModelError
from qil_deploy.onnx_io import INPUT_NAME, OUTPUT_NAME

RETURNED: Final = "returned"
"""Key in the `meta` of an output node: the `Returned` of the network."""

_RESERVED = (INPUT_NAME, "images", "about")  # the file's input, and what else golden vectors hold besides tensors
_ODD = re.compile(r"[^0-9A-Za-z_.\-]")


@dataclass(frozen=True, kw_only=True)
class Returned:
    """Tensors that a network returns, and the containers around them.

    Attributes:
        names: of the tensors, in order.
        leaves: what the containers hold, with None for each tensor.
        places: where in `leaves` the tensors belong.
        containers: dictionaries, tuples and so on; None around a single tensor, which is returned by itself.
    """

    names: tuple[str, ...] = (OUTPUT_NAME,)
    leaves: tuple[Any, ...] = (None,)
    places: tuple[int, ...] = (0,)
    containers: pytree.TreeSpec | None = None

    def restore(self, result: object) -> object:
        """Restore the network's output from its graph's: a tensor, or a tuple of tensors."""
        if self.containers is None or not isinstance(result, tuple):
            return result
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, result, strict=True):
            leaves[place] = tensor
        return pytree.tree_unflatten(leaves, self.containers)


def returned_by(leaves: Sequence[object], containers: pytree.TreeSpec) -> tuple[list[fx.Node], Returned]:
    """Return the nodes whose tensors a captured network returns, and their containers.

    Args:
        leaves: nodes and constants, as `torch.export` lists them.
        containers: what holds them.

    Raises:
        UnsupportedModelError: no tensor, or a computed value that is no tensor of floats.
    """
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, fx.Node)]
    nodes = [leaf for leaf in leaves if isinstance(leaf, fx.Node)]
    if not nodes:
        raise UnsupportedModelError("the network returns no tensor; it has to return one or more, image by image.")
    if len(nodes) == 1:
        returned = Returned()
    else:
        returned = Returned(
            names=_names(leaves, places, containers),
            leaves=tuple(None if isinstance(leaf, fx.Node) else leaf for leaf in leaves),
            places=tuple(places),
            containers=containers,
        )
    for name, node in zip(returned.names, nodes, strict=True):
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or not value.is_floating_point():
            found = f"is {str(value.dtype)[6:]}" if isinstance(value, Tensor) else "is a number that forward computes"
            raise UnsupportedModelError(
                f"output {name!r} of the network {found}; outputs are tensors of floats, so return what it is computed "
                "from, and take an argmax or a decision of what the file returns."
            )
    return nodes, returned


def _names(leaves: Sequence[object], places: Sequence[int], containers: pytree.TreeSpec) -> tuple[str, ...]:
    """Return a name for each tensor: its keys and fields, joined; a leading index gets the prefix `output`."""
    tree = pytree.tree_unflatten(list(leaves), containers)
    paths = [path for path, _ in pytree.tree_flatten_with_path(tree)[0]]
    names: list[str] = []
    for place in places:
        keys = [
            _ODD.sub("_", str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))))
            for key in paths[place]
        ]
        first = getattr(paths[place][0], "idx", None)
        name = "_".join(["output", *keys] if first is not None else keys) or "output"
        candidate, number = name, 1
        while candidate in (*_RESERVED, *names):
            number += 1
            candidate = f"{name}_{number}"
        names.append(candidate)
    return tuple(names)


def returned_of(graph: fx.Graph) -> Returned:
    """Return the output structure of a graph."""
    returned: Returned = graph.output_node().meta.get(RETURNED, Returned())
    return returned


def outputs_of(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes whose tensors a graph returns, in order."""
    result = graph.output_node().args[0]
    nodes = list(result) if isinstance(result, tuple | list) else [result]
    return [node for node in nodes if isinstance(node, fx.Node)]


def tensors_of(result: object) -> list[Tensor]:
    """Return the tensors of a network's output, in order."""
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def logits_of(result: object) -> Tensor:
    """Return the logits of a network's output, [N, classes]: its first tensor.

    Raises:
        DataError: it is not one row per image.
    """
    logits = tensors_of(result)[0]
    if logits.ndim != 2:
        raise DataError(
            f"the first output of the network has the shape {list(logits.shape)}; classes are told by a row of logits "
            "for each image, [N, classes]."
        )
    return logits


def named_tensors(result: object) -> list[tuple[str, Tensor]]:
    """Return the tensors of a network's output, in order, each with the name of its output in a file."""
    leaves, containers = pytree.tree_flatten(result)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    names = _names(leaves, places, containers) if len(places) > 1 else (OUTPUT_NAME,) * len(places)
    return [(name, leaves[place]) for name, place in zip(names, places, strict=True)]


def require_maps_of_images(named: Sequence[tuple[str, tuple[int, ...]]], image: Sequence[int]) -> None:
    """Require every output to be a row or a map of each image.

    Args:
        named: names of the outputs, and their shapes for one image.
        image: its shape.

    Raises:
        UnsupportedModelError: it is another tensor.
    """
    for name, shape in named:
        if len(shape) < 2 or shape[0] != 1 or 0 in shape:
            which = "the network returns" if len(named) == 1 else f"output {name!r} of the network is"
            raise UnsupportedModelError(
                f"{which} a tensor of shape {list(shape)} for one of shape {list(image)}; an output has one row of "
                "numbers per image, [N, classes], or one map, [N, C, H, W]."
            )
