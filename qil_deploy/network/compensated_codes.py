"""Codes of weights whose errors cancel in a layer's sums.

Rounded by itself, each weight is off by half a step at most. What counts is how far the sums are off. With `e` [K] the
errors of one output channel's weights in codes, the sums' mean square error is `e M e'` (`moments`).

Weights are rounded one after the other, those that meet the largest inputs first, and the remaining ones make up for
the error of the rounded one (optimal brain surgery; Hassibi and Stork, 1993), here in the form that needs one
Cholesky factor for all output channels (GPTQ; Frantar et al., ICLR 2023):

    inv(M) = U' U,  U upper triangular        w[j] -= (w[i] - code[i]) * U[i, j] / U[i, i]   for j > i

Then every code moves, in turn, to the whole number of least error, given the others, for `_ROUNDS` rounds or until none
moves. Where channels have sizes of their own, a channel's largest code represents the share of its largest weight,
among `_SHARES`, that has the least error with each weight rounded by itself and inputs taken as independent.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_BLOCK: Final = 128  # columns of weights after whose rounding the rest is brought up to date at once
_ROUNDS: Final = 3  # in which codes move; few move in the last
_SHARES: Final = torch.linspace(1.0, 0.4, 25, dtype=torch.float64)


def best_sizes(weights: Tensor, importance: Tensor, largest: int) -> Tensor:
    """Return the magnitude of each channel's largest code, [G, C_out / G, 1]; 1 for a channel of zeros.

    Args:
        weights: float64 [G, C_out / G, K].
        importance: of the squared error of each weight, [G, K].
        largest: code.
    """
    magnitude = weights.abs().amax(2, keepdim=True)
    magnitude = torch.where(magnitude > 0, magnitude, torch.ones_like(magnitude))
    sizes, least = magnitude, torch.full_like(magnitude, torch.inf)
    for share in _SHARES.to(weights.device):
        step = share * magnitude / largest
        error = (weights / step).round().clamp(-largest, largest) * step - weights
        total = (error.square() * importance[:, None]).sum(2, keepdim=True)
        sizes, least = torch.where(total < least, share * magnitude, sizes), torch.minimum(total, least)
    return sizes


def compensated_codes(real: Tensor, matrix: Tensor, largest: int) -> Tensor:
    """Round codes one after another so that errors cancel (module docstring).

    Args:
        real: codes before rounding, float64 [G, C_out / G, K]; they may lie beyond the largest.
        matrix: `M`, float64 [G, K, K], positive definite.
        largest: codes are whole numbers in [-largest, largest].

    Returns:
        The codes, float64, of the shape of `real`.
    """
    order = matrix.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
    factor = _inverse_factor(_reordered(_reordered(matrix, order, 1), order, 2))
    left = _reordered(real, order, 2)
    codes = torch.empty_like(left)
    for start in range(0, left.shape[2], _BLOCK):
        end = min(start + _BLOCK, left.shape[2])
        errors = torch.empty_like(left[:, :, start:end])
        for i in range(start, end):
            codes[:, :, i] = left[:, :, i].round().clamp(-largest, largest)
            error = (left[:, :, i] - codes[:, :, i]) / factor[:, i, i, None]
            errors[:, :, i - start] = error
            left[:, :, i + 1 : end] -= error[:, :, None] * factor[:, None, i, i + 1 : end]
        left[:, :, end:] -= errors @ factor[:, start:end, end:]
    return _reordered(codes, order.argsort(dim=1), 2)


def moved_codes(codes: Tensor, real: Tensor, matrix: Tensor, largest: int) -> Tensor:
    """Return codes of no larger error than the given ones: each in turn is set to the best, given the others.

    Arguments and result as in `compensated_codes`; `codes` is its result.
    """
    codes = codes.clone()
    slope = (codes - real) @ matrix
    curvature = matrix.diagonal(dim1=1, dim2=2)
    for _ in range(_ROUNDS):
        before = codes.clone()
        for i in range(codes.shape[2]):
            best = (codes[:, :, i] - slope[:, :, i] / curvature[:, i, None]).round().clamp(-largest, largest)
            slope += (best - codes[:, :, i])[:, :, None] * matrix[:, i, None, :]
            codes[:, :, i] = best
        if torch.equal(codes, before):
            break
    return codes


def _inverse_factor(matrix: Tensor) -> Tensor:
    """Return the upper triangular `U` with `U' U` the inverse of the matrices [G, K, K]."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _reordered(values: Tensor, order: Tensor, dim: int) -> Tensor:
    """Return [G, A, B] with the entries of dimension 1 or 2 in a separate order [G, A or B] for each group."""
    index = order[:, :, None] if dim == 1 else order[:, None, :]
    return values.gather(dim, index.expand(values.shape))
