"""Frozen modules of gates: products of codes, and functions of codes that are tables."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .bounds import Function, tabulated
from .frozen_modules import FrozenModule, Grid, divided, rounded_codes

# Scales of a table are changed by so little until no entry lies near a tie. Of 256 entries, one in four tables has one.
_HAIR = 2.0**-11
_MOST_HAIRS = 128


class FrozenProduct(FrozenModule):
    """Product of codes: `clip(rint((A - z_a) * (B - z_b) * p / q) + z_y, low, high)`, `q` odd, broadcasting."""

    numerator: Tensor
    denominator: Tensor

    y: Grid

    def __init__(self, a: Grid, b: Grid, y: Grid, p: int, q: int) -> None:
        super().__init__()
        self.a, self.b, self.y = a, b, y
        self.register_buffer("numerator", torch.tensor(p, dtype=torch.int64))
        self.register_buffer("denominator", torch.tensor(q, dtype=torch.int64))

    def reads(self) -> list[Grid]:
        """Return the grids of both factors."""
        return [self.a, self.b]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Multiply codes of shapes that broadcast."""
        total = (a - self.a.zero_point).double() * ((b - self.b.zero_point).double() * self.numerator)
        return divided(total, self.denominator, self.y)


class FrozenTable(FrozenModule):
    """A function of codes: `clip(rint(f((X - z_x) * x_scale) / y_scale) + z_y, low, high)`, a table of 256.

    Both scales are those of the grids, or differ by a hair, so that no entry lies near a tie and every machine has the
    same table.

    Attributes:
        x_scale, y_scale: float32 scalars.
        slope: float32 scalar; of a LeakyReLU, below zero.
    """

    x_scale: Tensor
    y_scale: Tensor
    slope: Tensor

    y: Grid

    def __init__(self, function: Function, x: Grid, y: Grid, slope: float = 0.0) -> None:
        super().__init__()
        self.function: Function = function
        self.x, self.y = x, y
        self.register_buffer("slope", torch.tensor(slope, dtype=torch.float32))
        x_scale, y_scale = _scales_without_ties(function, x, y, float(self.slope))
        self.register_buffer("x_scale", x_scale)
        self.register_buffer("y_scale", y_scale)

    def reads(self) -> list[Grid]:
        """Return the grid of its input."""
        return [self.x]

    def forward(self, x: Tensor) -> Tensor:
        """Map codes to codes."""
        with torch.autocast(x.device.type, enabled=False):
            real = (x - self.x.zero_point) * self.x_scale
            values = torch.sigmoid(real) if self.function == "sigmoid" else F.leaky_relu(real, float(self.slope))
            return rounded_codes(values / self.y_scale, self.y)


def _scales_without_ties(function: Function, x: Grid, y: Grid, slope: float) -> tuple[Tensor, Tensor]:
    """Return the scales nearest to those of the grids for which no entry of the table lies near a tie.

    The input scale alone would not move the value of zero; the output scale alone, not small values.
    """
    scales = x.scale, y.scale
    for hairs in range(_MOST_HAIRS):
        scales = x.scale * (1 - hairs * _HAIR), y.scale * (1 + hairs * _HAIR)
        risk = tabulated(
            function, (float(scales[0]), float(x.zero_point)), (float(scales[1]), float(y.zero_point)), slope
        ).risk()
        if risk < 1:
            break
    return scales
