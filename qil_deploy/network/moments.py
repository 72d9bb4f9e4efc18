"""Moments for compensated rounding: of the inputs that weights multiply, and of the results they should give.

With `x` [K] what the weights of one output channel meet in the quantized network, `f` what the float layer returns at
the same place of the same image, and `w` the float weights, as they act on `x`, a channel's error is on average

    E |f - v x|² + pull |v - w|²   =   (v - v*) M (v - v*)' + what no weights change
    M = mean(x x') + pull          v* = along M^-1          along = mean(f x') + pull w

with moments about the mean where a shift or a BatchNorm takes a constant out anyway. Rounded weights are judged by `M`
with the least pull, `DAMPING`. If what the float layer returns is not known, it is `w x`, and so `v* = w`. For weights
`v = s y` with a scale `s` of their own, the best is

    s = (y along') / (y M y')
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from .layers import QuantConv2d, QuantLayer, QuantLinear, pad_image, pair

DAMPING: Final = 0.01
"""In units of the inputs' mean square: what is added to the diagonal of `M`, and the least pull."""


@dataclass(frozen=True)
class Problem:
    """Target of a layer's weights, and the cost of deviating from it (module docstring); all float64.

    Attributes:
        matrix: `M`, [G, K, K], damped, positive definite; G groups.
        target: `v*`, [G, C_out / G, K].
        inputs, results: means of `x`, [G, K], and of `f`, [G, C_out / G].
    """

    matrix: Tensor
    target: Tensor
    inputs: Tensor
    results: Tensor


class Moments:
    """Sums over the inputs of a layer's weights, and over the float layer's results.

    Args:
        layer: says how many weights there are.
        with_results: whether the float layer's results are known.
    """

    def __init__(self, layer: QuantLayer, *, with_results: bool) -> None:
        groups, row = groups_of(layer), layer.weight[0].numel()
        outputs = len(layer.weight) // groups
        self._count = 0
        self._products = layer.weight.new_zeros((groups, row, row), dtype=torch.float64)
        self._inputs = self._products.new_zeros((groups, row))
        self._along = self._products.new_zeros((groups, outputs, row)) if with_results else None
        self._results = self._products.new_zeros((groups, outputs))

    def add(self, x: Tensor, f: Tensor | None) -> None:
        """Add inputs [G, P, K] and the float layer's results [G, P, C_out / G]."""
        x = x.double()
        self._count += x.shape[1]
        self._products += x.transpose(1, 2) @ x
        self._inputs += x.sum(1)
        if self._along is not None and f is not None:
            f = f.double()
            self._along += f.transpose(1, 2) @ x
            self._results += f.sum(1)

    def problem(self, weights: Tensor, *, centred: bool, pull: float = DAMPING) -> Problem:
        """Return the problem that the sums pose.

        Args:
            weights: `w`, float64 [G, C_out / G, K].
            centred: whether a constant in the results does not matter.
            pull: towards `w`, in units of the inputs' mean square.
        """
        inputs, results = self._inputs / self._count, self._results / self._count
        matrix = self._products / self._count
        if centred:
            matrix -= inputs[:, :, None] * inputs[:, None, :]
        square = matrix.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        square = torch.where(square > 0, square, torch.ones_like(square))  # what a layer never meets is 0
        unit = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
        if self._along is None:
            target, results = weights, (weights @ inputs[:, :, None])[:, :, 0]
        else:
            along = self._along / self._count + pull * square * weights
            if centred:
                along -= results[:, :, None] * inputs[:, None, :]
            target = torch.linalg.solve(matrix + pull * square * unit, along, left=False)
        return Problem(matrix + DAMPING * square * unit, target, inputs, results)


def groups_of(layer: QuantLayer) -> int:
    """Return the number of groups of a layer: 1 if it is linear."""
    return layer.groups if isinstance(layer, QuantConv2d) else 1


def inputs_of_weights(layer: QuantLayer, x: Tensor, chosen: Tensor) -> Tensor:
    """Return the inputs that an output channel's weights multiply, in their order: [G, P, K].

    Args:
        layer: convolution or linear.
        x: its input, [N, C, H, W] or [..., K].
        chosen: the positions of a convolution's output, counted row by row; of a linear layer's every row counts.
    """
    if isinstance(layer, QuantLinear):
        return x.reshape(1, -1, x.shape[-1])
    top, left = pair(layer.padding)
    windows = F.pad(pad_image(x, layer), (left, left, top, top))
    for dim, size, stride, dilation in zip(
        (2, 3), layer.kernel_size, pair(layer.stride), pair(layer.dilation), strict=True
    ):
        windows = windows.unfold(dim, dilation * (size - 1) + 1, stride)[..., ::dilation]  # a view
    width = windows.shape[3]
    seen = windows[:, :, chosen // width, chosen % width]  # [N, C, P, rows, columns]
    seen = seen.unflatten(1, (layer.groups, -1))
    inputs: Tensor = seen.permute(1, 0, 3, 2, 4, 5).reshape(layer.groups, len(x) * len(chosen), -1)
    return inputs


def results_of_weights(layer: QuantLayer, f: Tensor, chosen: Tensor) -> Tensor:
    """Return a float layer's results, [N, C_out, ...], at the places of `inputs_of_weights`: [G, P, C_out / G]."""
    if isinstance(layer, QuantLinear):
        return f.reshape(1, -1, len(layer.weight))
    results = f.reshape(len(f), layer.groups, len(layer.weight) // layer.groups, -1)[..., chosen]
    return results.permute(1, 0, 3, 2).flatten(1, 2)
