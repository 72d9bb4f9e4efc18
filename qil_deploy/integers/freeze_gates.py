"""Freeze gates: products, tables, and hard sigmoids that no layer absorbs."""

from __future__ import annotations

from torch import nn

from .frozen_gates import FrozenProduct, FrozenTable
from .frozen_modules import FrozenModule, FrozenRescale, Grid
from .ratios import choose_denominator, nearest_fraction, nearest_numerator, shrink_factor

SMALLEST_SIGMOID_STEP = 2.0**-12
"""Of the grid of a sigmoid: float32 knows values near zero no better, and a gate that never opens needs no more."""

_LARGEST_PRODUCT = 255 * 255  # of codes less their zero points


def frozen_gate(module: nn.Module, inputs: list[Grid], y: Grid) -> FrozenModule:
    """Return the frozen form of a product, sigmoid, LeakyReLU, PReLU or hard sigmoid.

    Args:
        module: the plain module.
        inputs: the grids of what it reads.
        y: the grid of its result, with the limits of a ReLU after it, or of the hard sigmoid.
    """
    if isinstance(module, nn.Sigmoid):
        return FrozenTable("sigmoid", inputs[0], y)
    if isinstance(module, nn.LeakyReLU):
        return FrozenTable("leaky relu", inputs[0], y, module.negative_slope)
    if isinstance(module, nn.PReLU):
        return FrozenTable("leaky relu", inputs[0], y, float(module.weight.detach()))
    if isinstance(module, nn.Hardsigmoid):
        return _hard_sigmoid(inputs[0], y)
    a, b = inputs
    p, q = nearest_fraction(float(a.scale) * float(b.scale) / float(y.scale), _LARGEST_PRODUCT, int(y.zero_point))
    return FrozenProduct(a, b, y, p, q)


def _hard_sigmoid(x: Grid, y: Grid) -> FrozenRescale:
    """Return the rescale of `x / 6 + 1/2`, cut at the codes of 0 and 1."""
    scale, zero_point = float(y.scale), int(y.zero_point)
    ratio, half = float(x.scale) / 6 / scale, 0.5 / scale
    largest = 255 + int(x.zero_point)
    factor = shrink_factor([largest * ratio, half])
    ratio, half = factor * ratio, factor * half
    q = choose_denominator([largest * ratio, half, zero_point])
    return FrozenRescale(x, y, scale, nearest_numerator(ratio, q), q, -round(half * q))
