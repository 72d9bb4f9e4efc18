"""Modules of a frozen model: they compute, on tensors of integers, exactly what the runtime computes.

Codes travel as float32 tensors of integers between 0 and 255. Sums are exact: float32 holds integers below
2**24, and where a sum could leave that range, or on a device whose convolutions may not sum exactly, float64
takes over. Autocast would round codes to half precision and changes nothing here.

The grids of activations are constants here. A `FrozenLayer` still has its weights, weight interval and
BatchNorm as parameters: in training mode it folds them anew in every forward pass, gradients going straight
through the rounding; when training ends (`.eval()`) it folds once more into integer buffers, and evaluation,
checkpoints and export use those alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy.network import FloatIsland, Norm, QuantConv2d, QuantLayer, pad_image, weight_to_quantize
from qil_deploy.quantizers import InputQuantizer, round_straight_through

from .fold import (
    FoldedChannels,
    FoldedLayer,
    OutputGrid,
    fold,
    fold_channels,
    gain_and_shift,
    integer_codes,
    largest_spread,
)

EXACT_FLOAT32 = 2**24


class Grid(nn.Module):
    """Codes of one tensor: value `(code - zero_point) * scale + offset`, codes between `low` and `high`.

    Kept as buffers, so that a checkpoint restores them to the bit.

    Attributes:
        scale: float32 scalar; 1/q for low-bit codes behind an interval, which stand for 0/q..q/q.
        zero_point, low, high: int64 scalars in 0..255.
        low_bit: whether the codes are those behind an interval, otherwise those of an 8-bit range.
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
    """What reads codes and makes codes or logits.

    Attributes:
        y: grid of the codes that it makes; None where it makes float logits.
    """

    y: Grid | None  # a value here would hide the module's

    def reads(self) -> list[Grid]:
        """Return the grids of its inputs, in their order."""
        raise NotImplementedError


class FrozenLayer(FrozenModule):
    """Convolution or linear layer with what follows it: codes in, codes or float logits out. Algebra: `fold`.

    Args:
        layer: the quantized layer.
        norm: BatchNorm behind it, if any, whose statistics are constants from now on; or scales and shifts.
        x: grid of the input.
        y: grid of the output; None for logits.
        y_step: step of the output in real units (`y.scale` of a low-bit interval is 1/q instead).
        y_offset: value of output code `y.zero_point`.
    """

    weight_codes: Tensor
    spread: Tensor
    bias: Tensor
    w_scale: Tensor
    y_step: Tensor
    y_offset: Tensor

    def __init__(
        self,
        layer: QuantLayer,
        norm: Norm | None,
        x: Grid,
        y: Grid | None,
        y_step: float,
        y_offset: float,
    ) -> None:
        super().__init__()
        self.layer, self.norm, self.x, self.y = layer, norm, x, y
        channels = layer.weight.shape[0]
        self.register_buffer("weight_codes", torch.zeros(layer.weight.shape, dtype=torch.int8))
        self.register_buffer("spread", torch.ones(channels, dtype=torch.int8))
        self.register_buffer("bias", torch.zeros(channels, dtype=torch.int32))
        self.register_buffer("w_scale", torch.ones(channels, dtype=torch.float32))
        self.register_buffer("y_step", torch.tensor(y_step, dtype=torch.float32))
        self.register_buffer("y_offset", torch.tensor(y_offset, dtype=torch.float64))
        self.fold_to_buffers()

    def fold(self) -> FoldedLayer:
        """Fold the present parameters."""
        return fold(self.layer.weight_quantizer.codes_real(weight_to_quantize(self.layer)), self._fold_channels())

    def _fold_channels(self) -> FoldedChannels:
        quantizer = self.layer.weight_quantizer
        gain, shift = gain_and_shift(self.layer, self.norm)
        step = None if self.y is None else float(self.y_step)
        output = OutputGrid(scale=step, offset=float(self.y_offset))
        # Padding puts the zero point into every window, so codes count with their full uint8 value.
        spread = largest_spread(quantizer.largest_code, max(int(self.x.high), int(self.x.zero_point)))
        return fold_channels(quantizer.largest_code, gain, shift, self.x.scale, output, spread)

    @torch.no_grad()
    def fold_to_buffers(self) -> None:
        """Fold the present parameters into the integer buffers."""
        channels = self._fold_channels()
        signs = channels.signs.to(torch.int8).reshape((-1,) + (1,) * (self.weight_codes.ndim - 1))
        self.weight_codes.copy_(integer_codes(self.layer.weight_quantizer, weight_to_quantize(self.layer))).mul_(signs)
        self.spread.copy_(channels.spread)
        self.bias.copy_(channels.bias)
        self.w_scale.copy_(channels.w_scale)

    def train(self, mode: bool = True) -> FrozenLayer:
        """Switch mode; leaving training folds into the buffers. BatchNorm's statistics never move."""
        ending = self.training and not mode
        super().train(mode)
        if self.norm is not None:
            self.norm.eval()
        if ending:
            self.fold_to_buffers()
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Fold first where training goes on: the integers have to be those of the parameters beside them."""
        if self.training:
            self.fold_to_buffers()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _folded(self) -> FoldedLayer:
        if self.training:
            return self.fold()
        return FoldedLayer(
            codes=self.weight_codes.float(),
            spread=self.spread.long(),
            bias=self.bias.double(),
            w_scale=self.w_scale,
        )

    def reads(self) -> list[Grid]:
        """Return the grid of its input."""
        return [self.x]

    def forward(self, x: Tensor) -> Tensor:
        """Map input codes to output codes, or to float32 logits."""
        folded = self._folded()
        spread = folded.spread.reshape((-1,) + (1,) * (folded.codes.ndim - 1))
        weight = folded.codes * spread
        magnitudes = torch.linalg.vector_norm(weight.detach(), 1, dim=tuple(range(1, weight.ndim)))  # makes no copy
        sums = magnitudes * self.x.largest_difference()
        accumulator = self._accumulate(x - self.x.zero_point, weight, folded.bias, sums)
        y_step = None if self.y is None else self.y_step
        scaled = accumulator * _per_channel(folded.multiplier(self.x.scale, y_step), x.ndim)
        if self.y is None:
            return scaled
        return rounded_codes(scaled, self.y)

    def _accumulate(self, x: Tensor, weight: Tensor, bias: Tensor, sums: Tensor) -> Tensor:
        """Return `float32(sum + bias)` with an exact sum."""
        exact = x.device.type == "cpu" and float(sums.max()) < EXACT_FLOAT32
        dtype = torch.float32 if exact else torch.float64
        total = _convolve(self.layer, x.to(dtype), weight.to(dtype))
        if float((sums + bias.detach().abs()).max()) >= EXACT_FLOAT32:
            total = total.double()
        return (total + _per_channel(bias, x.ndim).to(total.dtype)).float()


def drop_float_weights(model: nn.Module) -> None:
    """Let go of the float weights of a frozen model, which has its integers; it can be run and exported, not trained.

    Four of five bytes that such a model holds are these. A prepared model that shares them (`freeze`) has none either
    from then on. A model without frozen layers stays as it is.
    """
    for module in model.modules():
        if isinstance(module, FrozenLayer):
            module.layer.weight.data = torch.empty(0)


class FrozenRescale(FrozenModule):
    """Codes on another grid: `clip(rint(((X - x_zero_point) * p - k) / q) + y_zero_point, low, high)`, `q` odd.

    8-bit codes become low-bit codes behind an interval, or those of a hard sigmoid.
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
    """What is kept in float: `clip(rint(f((X_1 - z_1) * s_1, ...) / y_scale) + z_y, low, high)`, all in float32.

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
    """Codes as float logits, `float32(X - x_zero_point) * x_scale`, where no linear layer makes them."""

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
    """Return the codes of a fraction, integers over an odd one, in float64."""
    return rounded_codes((total / denominator).float(), y)


def rounded_codes(scaled: Tensor, y: Grid) -> Tensor:
    """Round and saturate. Clamping first keeps the gradient zero outside the interval, as in the quantizers."""
    low, high = y.limits()
    zero_point = int(y.zero_point)
    return round_straight_through(scaled.clamp(low - zero_point, high - zero_point)) + zero_point


def _convolve(layer: QuantLayer, x: Tensor, weight: Tensor) -> Tensor:
    # NNPACK, which torch takes where oneDNN is missing, convolves by Winograd or FFT: sums are not exact.
    with torch.backends.nnpack.flags(enabled=False), torch.autocast(x.device.type, enabled=False):
        if isinstance(layer, QuantConv2d):
            x = pad_image(x, layer)
            return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        return F.linear(x, weight)


def _per_channel(values: Tensor, rank: int) -> Tensor:
    """Reshape [C] so that it broadcasts over [N, C] or [N, C, H, W]."""
    return values.reshape((1, -1) + (1,) * (rank - 2))
