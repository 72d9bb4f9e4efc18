"""Find the BatchNorm or ReLU of a layer after moves: a transposed convolution's, a pixel shuffle, rows.

ReLU and its like commute with every move. BatchNorm does if each of its channels holds the values of equally many
channels of the layer, next to each other: `b * c` to `b * c + b - 1` for channel `c` of blocks of `b` pixels. Folded,
its gain and shift are repeated for each of these (`qil_deploy.integers.fold`).
"""

from __future__ import annotations

import torch
from torch import fx

from .graph import kind_of, module_of, row_of, shape_of, users_of
from .operator_row import Kind


def completion_of(graph_module: fx.GraphModule, node: fx.Node, kind: Kind) -> fx.Node | None:
    """Return the only reader of a node's result, directly or after moves, if it is of a kind; else None.

    Moves that choose among values or repeat them, and dropout, are not passed.
    """
    users = users_of(node)
    while len(users) == 1 and _only_moves(graph_module, users[0]):
        users = users_of(users[0])
    return users[0] if len(users) == 1 and kind_of(graph_module, users[0]) == kind else None


def norm_behind(graph_module: fx.GraphModule, layer: fx.Node) -> fx.Node | None:
    """Return the BatchNorm, or scales and shifts, that a layer absorbs; None if it absorbs none."""
    norm = completion_of(graph_module, layer, "bn")
    if norm is None:
        return None
    moves = moves_between(layer, norm)
    return norm if not moves or _keeps_channels(graph_module, layer, moves) else None


def moves_between(first: fx.Node, last: fx.Node) -> list[fx.Node]:
    """Return the nodes between two, each the only reader of the one before it."""
    between: list[fx.Node] = []
    node = users_of(first)[0]
    while node is not last:
        between.append(node)
        node = users_of(node)[0]
    return between


def _only_moves(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    row = row_of(graph_module, node)
    return row is not None and row.kind == "pass" and not (row.chooses or row.only_trains)


def _keeps_channels(graph_module: fx.GraphModule, layer: fx.Node, moves: list[fx.Node]) -> bool:
    """Whether each channel after moves holds the values of channels of its own of a layer, next to each other."""
    _, channels, *sizes = shape_of(layer)
    numbers = torch.arange(channels).reshape(1, -1, *(1 for _ in sizes)).expand(1, -1, *sizes)
    for move in moves:
        numbers = module_of(graph_module, move)(numbers)
    if numbers.ndim < 2 or channels % numbers.shape[1]:
        return False
    expected = torch.arange(numbers.shape[1]).reshape(1, -1, *(1 for _ in numbers.shape[2:]))
    return bool((numbers // (channels // numbers.shape[1]) == expected).all())
