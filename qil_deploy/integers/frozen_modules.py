"""Modules of a frozen model: on tensors of integers, they compute exactly the runtime's results.

Codes travel as float32 tensors of integers between 0 and 255, and sums are exact. Autocast would round codes to half
precision and changes nothing here.

Grids and ratios are constants here. What has weights, and keeps learning, is in `frozen_layer`; products and tables are
in `frozen_gates`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qil_deploy.network import FloatIsland
from qil_deploy.quantizers import InputQuantizer, round_straight_through


class Grid(nn.Module):
    """Codes of one tensor: value `(code - zero_point) * scale + offset`, codes between `low` and `high`.

    Kept as buffers, so that a checkpoint restores them to the bit.

    Attributes:
        scale: float32 scalar; 1/q for low-bit codes of an interval, which represent 0/q..q/q.
        zero_point, low, high: int64 scalars in 0..255.
        low_bit: whether the codes are those of an interval, otherwise those of an 8-bit range.
    """

    scale: Tensor
    zero_point: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, scale: float, zero_point: int, low: int, high: int, *, low_bit: bool = False) -> None:
        super().__init__()
        self.low_bit = low_bit
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        for name, value in (("zero_point", zero_point), ("low", low), ("high", high)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.int64))

    def limits(self) -> tuple[int, int]:
        """Return (low, high)."""
        return int(self.low), int(self.high)

    def largest_difference(self) -> int:
        """Return the largest `|code - zero_point|`."""
        low, high = self.limits()
        zero_point = int(self.zero_point)
        return max(high - zero_point, zero_point - low)

    def extra_repr(self) -> str:
        """All values."""
        return f"scale={float(self.scale):.6g}, zero_point={int(self.zero_point)}, codes={self.limits()}"


class FrozenInput(InputQuantizer):
    """Normalised images to uint8 codes."""

    def forward(self, x: Tensor) -> Tensor:
        """Map float32 images to codes 0..255."""
        return self.codes(x)


class FrozenModule(nn.Module):
    """Base class of modules that map codes to codes or logits.

    Attributes:
        y: grid of the codes that it makes; None where it makes float logits.
    """

    y: Grid | None  # a value here would hide the module's

    def reads(self) -> list[Grid]:
        """Return the grids of its inputs, in their order."""
        raise NotImplementedError


class FrozenRescale(FrozenModule):
    """Codes on another grid: `clip(rint(((X - x_zero_point) * p - k) / q) + y_zero_point, low, high)`, `q` odd.

    8-bit codes become low-bit codes of an interval, or those of a hard sigmoid.
    """

    y_step: Tensor
    numerator: Tensor
    denominator: Tensor
    offset_numerator: Tensor

    y: Grid

    def __init__(self, x: Grid, y: Grid, y_step: float, p: int, q: int, k: int) -> None:
        super().__init__()
        self.x, self.y = x, y
        self.register_buffer("y_step", torch.tensor(y_step, dtype=torch.float32))
        self.register_buffer("numerator", torch.tensor(p, dtype=torch.int64))
        self.register_buffer("denominator", torch.tensor(q, dtype=torch.int64))
        self.register_buffer("offset_numerator", torch.tensor(k, dtype=torch.int64))

    def reads(self) -> list[Grid]:
        """Return the grid of its input."""
        return [self.x]

    def forward(self, x: Tensor) -> Tensor:
        """Map codes to codes."""
        total = (x.double() - self.x.zero_point) * self.numerator - self.offset_numerator
        return divided(total, self.denominator, self.y)


class FrozenAdd(FrozenModule):
    """Sum of codes: `clip(rint(((A - z_a) * p_a + (B - z_b) * p_b) / q) + z_y, low, high)`, `q` odd."""

    numerators: Tensor
    denominator: Tensor

    y: Grid

    def __init__(self, a: Grid, b: Grid, y: Grid, p_a: int, p_b: int, q: int) -> None:
        super().__init__()
        self.a, self.b, self.y = a, b, y
        self.register_buffer("numerators", torch.tensor([p_a, p_b], dtype=torch.int64))
        self.register_buffer("denominator", torch.tensor(q, dtype=torch.int64))

    def reads(self) -> list[Grid]:
        """Return the grids of both terms."""
        return [self.a, self.b]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Add codes of one shape."""
        total = (a.double() - self.a.zero_point) * self.numerators[0]
        total = total + (b.double() - self.b.zero_point) * self.numerators[1]
        return divided(total, self.denominator, self.y)


class FrozenGlobalAveragePool(FrozenModule):
    """Mean over height and width: `clip(rint(sum(X - z_x) * p / q) + z_y, low, high)`, `q` odd, the window in `p/q`."""

    numerator: Tensor
    denominator: Tensor

    y: Grid

    def __init__(self, x: Grid, y: Grid, window: int, p: int, q: int) -> None:
        super().__init__()
        self.x, self.y, self.window = x, y, window
        self.register_buffer("numerator", torch.tensor(p, dtype=torch.int64))
        self.register_buffer("denominator", torch.tensor(q, dtype=torch.int64))

    def reads(self) -> list[Grid]:
        """Return the grid of its input."""
        return [self.x]

    def forward(self, x: Tensor) -> Tensor:
        """Map codes [N, C, H, W] to codes [N, C, 1, 1]."""
        total = (x.double() - self.x.zero_point).sum((2, 3), keepdim=True) * self.numerator
        return divided(total, self.denominator, self.y)


class FrozenFloat(FrozenModule):
    """Float operation: `clip(rint(f((X_1 - z_1) * s_1, ...) / y_scale) + z_y, low, high)`, all in float32.

    The quotient is that of ONNX's QuantizeLinear. `f` is the one thing in a frozen model that another runtime may
    round differently.
    """

    y: Grid

    def __init__(self, island: FloatIsland, inputs: Sequence[Grid], y: Grid) -> None:
        super().__init__()
        self.island, self.inputs, self.y = island, nn.ModuleList(inputs), y

    def reads(self) -> list[Grid]:
        """Return the grids of the inputs."""
        return [grid for grid in self.inputs if isinstance(grid, Grid)]

    def forward(self, *codes: Tensor) -> Tensor:
        """Map codes [N, ...] to codes [N, ...]."""
        real = ((x - grid.zero_point) * grid.scale for x, grid in zip(codes, self.reads(), strict=True))
        with torch.autocast(codes[0].device.type, enabled=False):
            return rounded_codes(self.island(*real) / self.y.scale, self.y)


class FrozenMeanLogits(FrozenModule):
    """Mean over height and width as float logits: `float32(sum(X - x_zero_point)) * scale`.

    Attributes:
        scale: `float32(x_scale / window)`.
    """

    scale: Tensor

    def __init__(self, x: Grid, window: int) -> None:
        super().__init__()
        self.x, self.y, self.window = x, None, window
        self.register_buffer("scale", torch.tensor(float(x.scale) / window, dtype=torch.float32))

    def reads(self) -> list[Grid]:
        """Return the grid of its input."""
        return [self.x]

    def forward(self, x: Tensor) -> Tensor:
        """Map codes [N, C, H, W] to logits [N, C, 1, 1]."""
        total = (x.double() - self.x.zero_point).sum((2, 3), keepdim=True)
        return total.float() * self.scale


class FrozenDequantize(FrozenModule):
    """Codes as float logits, `float32(X - x_zero_point) * x_scale`, for outputs that no linear layer makes."""

    def __init__(self, x: Grid) -> None:
        super().__init__()
        self.x, self.y = x, None

    def reads(self) -> list[Grid]:
        """Return the grid of its input."""
        return [self.x]

    def forward(self, x: Tensor) -> Tensor:
        """Map codes to logits of the same shape."""
        return (x - self.x.zero_point) * self.x.scale


def divided(total: Tensor, denominator: Tensor, y: Grid) -> Tensor:
    """Return the codes of a fraction with an odd integer denominator, in float64."""
    return rounded_codes((total / denominator).float(), y)


def rounded_codes(scaled: Tensor, y: Grid) -> Tensor:
    """Round and saturate. Clamping first keeps the gradient zero outside the interval, as in the quantizers."""
    low, high = y.limits()
    zero_point = int(y.zero_point)
    return round_straight_through(scaled.clamp(low - zero_point, high - zero_point)) + zero_point
