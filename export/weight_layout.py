"""Undo the layout of a layer's weights: which weight of the file multiplies which code of which tensor.

Passes put moves before a layer (Pad, Reshape, Transpose, Flatten, Cast to float) and arrange its weights to match.
Here the moves are executed on the positions of the tensor that they start from, instead of its codes: what arrives at
the layer tells, for every place of its input, where the code there comes from, or which constant is there. The weights
can then be written as those of a plain convolution or linear layer of that tensor, whatever the moves are.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qil_deploy.errors import CertificateError
from qil_deploy.onnx_io import Node
from qil_deploy.reference import Effect, effect_of, find_operator, pad_images, window_of, window_views

Positions = NDArray[np.int64]

# Positions begin above all codes, so that constants among them show.
_FIRST_POSITION = 256


@dataclass(frozen=True, kw_only=True)
class MovedInput:
    """Input of a layer, traced back through moves.

    Attributes:
        source: the tensor that the moves start from.
        shape: of one image of it.
        positions: for every place of the layer's input (of one image), the flat position in `source`; for a constant,
            `-1 - constant`.
    """

    source: str
    shape: tuple[int, ...]
    positions: Positions

    @property
    def is_source(self) -> bool:
        """Whether the layer reads the codes of `source` in their own order."""
        return np.array_equal(self.positions.ravel(), np.arange(np.prod(self.shape)))

    @property
    def is_pixels(self) -> bool:
        """Whether the layer reads several pixels of a map [C, H, W] one after another, as [H * W, C]."""
        channels, pixels = self.shape[0], math.prod(self.shape[1:])
        if len(self.shape) != 3 or self.positions.ndim != 2 or pixels == 1:
            return False
        order = np.arange(channels * pixels).reshape(channels, pixels).T
        return self.positions.shape == order.shape and np.array_equal(self.positions, order)


def follow_moves(
    name: str,
    producers: Mapping[str, Node],
    constants: Mapping[str, NDArray[Any]],
    shapes: Mapping[str, Sequence[int]],
    own: Collection[str] = (),
) -> MovedInput:
    """Return the source of the codes of tensor `name`.

    Args:
        name: a layer's input.
        producers: nodes by output.
        constants: initializers and what is computed from them.
        shapes: of all tensors, for one image.
        own: tensors that the network itself made by moving codes, which are sources, too.
    """
    moves: list[Node] = []
    while name in producers and name not in own and effect_of(producers[name]) in (Effect.MOVES, Effect.CASTS):
        moves.append(producers[name])
        name = moves[-1].inputs[0]
    shape = tuple(shapes[name])
    positions = np.arange(np.prod(shape), dtype=np.int64).reshape(shape) + _FIRST_POSITION
    for move in reversed(moves):
        if effect_of(move) is Effect.MOVES:
            operands = [constants[entry] if entry else None for entry in move.inputs[1:]]
            positions = find_operator(move).compute(move, [positions, *operands])
    is_constant = positions < _FIRST_POSITION
    found = np.where(is_constant, -1 - positions, positions - _FIRST_POSITION)
    return MovedInput(source=name, shape=shape[1:], positions=found)


def undo_linear(node: Node, weights: NDArray[np.int64], moved: MovedInput) -> NDArray[np.int64]:
    """Return the weights [C_out, inputs] of the linear layer of `moved.source` that the file computes.

    Args:
        node: for messages.
        weights: [C_out, places].
        moved: the layer's input.

    Raises:
        CertificateError: a weight other than zero meets a constant.
    """
    places = moved.positions.ravel()
    _require_zeros(node, weights[:, places < 0])
    targets = places[places >= 0]
    result = np.zeros((len(weights), int(np.prod(moved.shape))), np.int64)
    if len(np.unique(targets)) == len(targets):
        result[:, targets] = weights[:, places >= 0]
    else:
        np.add.at(result.T, targets, weights[:, places >= 0].T)
    return result


def undo_convolution(node: Node, weights: NDArray[np.int64], moved: MovedInput, zero_point: int) -> NDArray[np.int64]:
    """Return the weights [C_out, C, rows, columns] of the convolution of `moved.source` that the file computes.

    Its kernel is as large as the file's weights reach; the model's may lie anywhere within.

    Args:
        node: a convolution of one group, with its window.
        weights: [C_out, C', rows', columns'].
        moved: the layer's input.
        zero_point: of the input's codes; constants equal to it add nothing.

    Raises:
        CertificateError: the file computes no convolution of `moved.source`, or a weight other than zero meets
            nothing but constants.
    """
    window = window_of(node, weights.shape[2:])
    outputs = window.output_size(*moved.positions.shape[2:])
    padded = pad_images(moved.positions, window, -1 - zero_point)
    # [taps, output rows, output columns]
    views = window_views(padded, window, outputs).reshape(-1, *outputs)
    if np.any((views < 0) & (views != -1 - zero_point)):
        raise _refusal(node, f"constants other than the zero point {zero_point} are moved into its input")
    offsets = _tap_offsets(node, views, moved.shape)
    flat = weights.reshape(len(weights), -1)
    reached = offsets[:, 0] >= 0
    _require_zeros(node, flat[:, ~reached])
    places = offsets[reached]
    places[:, 1:] -= places[:, 1:].min(axis=0)
    channels, (rows, columns) = moved.shape[0], places[:, 1:].max(axis=0) + 1
    result = np.zeros((channels, rows, columns, len(weights)), np.int64)
    np.add.at(result, tuple(places.T), flat[:, reached].T)
    return result.transpose(3, 0, 1, 2)


def _tap_offsets(node: Node, views: Positions, shape: tuple[int, ...]) -> Positions:
    """Return (channel, row, column) of every tap at output (0, 0); channel -1 for taps that meet only constants.

    Raises:
        CertificateError: from one output to the next, taps do not move by one stride each, or they miss a pixel.
    """
    height, width = shape[1:]
    taps, output_rows, output_columns = views.shape
    y, x = np.meshgrid(np.arange(output_rows), np.arange(output_columns), indexing="ij")
    channel, row, column = views // (height * width), views // width % height, views % width
    valid = views >= 0
    strides = [_stride(coordinate, valid, axis) for coordinate, axis in ((row, 1), (column, 2))]
    row, column = row - strides[0] * y, column - strides[1] * x
    first = valid.reshape(taps, -1).argmax(axis=1)
    origin = [values.reshape(taps, -1)[np.arange(taps), first] for values in (channel, row, column)]
    ever: NDArray[np.bool_] = np.asarray(valid.reshape(taps, -1).any(axis=1))
    expected_row, expected_column = (
        origin[1][:, None, None] + strides[0] * y,
        origin[2][:, None, None] + strides[1] * x,
    )
    inside = (expected_row >= 0) & (expected_row < height) & (expected_column >= 0) & (expected_column < width)
    expected = (origin[0][:, None, None] * height + expected_row) * width + expected_column
    wrong = np.where(inside, views != expected, valid) & ever[:, None, None]
    if wrong.any():
        raise _refusal(node, f"{int(wrong.sum())} codes of its windows do not lie where a convolution would read them")
    return np.stack([np.where(ever, origin[0], -1), origin[1], origin[2]], axis=1)


def _stride(coordinates: Positions, valid: NDArray[np.bool_], axis: int) -> int:
    """Return the step of a coordinate from one output to the next along `axis`; 1 if no tap tells."""
    both = np.take(valid, range(1, valid.shape[axis]), axis) & np.take(valid, range(valid.shape[axis] - 1), axis)
    steps = np.diff(coordinates, axis=axis)[both]
    return int(steps[0]) if steps.size else 1


def _require_zeros(node: Node, weights: NDArray[np.int64]) -> None:
    if weights.any():
        raise _refusal(node, f"{np.count_nonzero(weights)} weights other than zero meet constants of the graph")


def _refusal(node: Node, reason: str) -> CertificateError:
    return CertificateError(f"certificate line 'weights' fails at {node.name}: {reason}.")


def fewest_differences(found: NDArray[np.int64], expected: NDArray[np.int64]) -> int:
    """Count the differing weights [C_out, C, ...], with the smaller kernel placed where it fits the larger one best."""
    if found.shape == expected.shape:
        return int((found != expected).sum())
    size = found.shape[2:]
    room = [have - need + 1 for have, need in zip(size, expected.shape[2:], strict=False)]
    if min(room, default=0) < 1 or found.shape[:2] != expected.shape[:2]:
        return max(found.size, expected.size)
    counts = []
    for top in range(room[0]):
        for left in range(room[1]):
            placed = np.zeros_like(found)
            placed[:, :, top : top + expected.shape[2], left : left + expected.shape[3]] = expected
            counts.append(int((placed != found).sum()))
    return min(counts)
