"""Inputs of a prepared model's layers, one layer after another, while those before change.

Changing a layer changes what all later ones read. So all batches are brought to one layer before any proceeds to the
next, with the layers before as they are by then. What is needed after a layer is kept if it fits into memory
for all batches together, so that the next layers start from there; otherwise they start from where it last did.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor, fx

from .graph import input_of

_KEPT_BYTES: Final = 2**30


class LayerInputs:
    """Runs a prepared model up to one layer after another.

    Args:
        model: prepared; it runs in the mode that it is in.
        batches: float32 [N, C, H, W] each, which nothing in a prepared model writes into.
    """

    def __init__(self, model: fx.GraphModule, batches: Sequence[Tensor]) -> None:
        self._interpreter = fx.Interpreter(model)
        self._interpreter.extra_traceback = False  # it would be added to the message of an error
        self._nodes = list(model.graph.nodes)
        (image,) = (node for node in self._nodes if node.op == "placeholder")
        self._start = self._nodes.index(image) + 1
        self._kept: list[dict[fx.Node, Tensor]] = [{image: batch} for batch in batches]

    def of(self, node: fx.Node) -> Iterator[Tensor]:
        """Yield the input of a node's layer, batch by batch.

        Args:
            node: a layer with one input, after those that were asked for before, in graph order.
        """
        stop = self._nodes.index(node)
        keep = None
        for index, kept in enumerate(self._kept):
            values = self._run(dict(kept), stop)
            if keep is None:
                keep = sum(map(_bytes, values.values())) * len(self._kept) <= _KEPT_BYTES
            if keep:
                self._kept[index] = values
            yield values[input_of(node)]
        if keep:
            self._start = stop

    @torch.no_grad()
    def _run(self, values: dict[fx.Node, Tensor], stop: int) -> dict[fx.Node, Tensor]:
        """Continue with one batch; return the values that nodes from `stop` on need."""
        interpreter = self._interpreter
        interpreter.env = values
        for node in self._nodes[self._start : stop]:
            values[node] = interpreter.run_node(node)
            for read in interpreter.user_to_last_uses.get(node, []):
                del values[read]
        return values


def _bytes(values: Tensor) -> int:
    return values.numel() * values.element_size()
