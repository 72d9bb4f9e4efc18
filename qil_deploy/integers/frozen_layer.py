"""The layer of a frozen model: a convolution or linear layer that computes in integers, and can still be trained.

Its weights, weight interval and BatchNorm are still parameters: in training mode it folds them anew in every forward
pass, gradients going straight through the rounding; when training ends (`.eval()`) it folds once more into integer
buffers, and evaluation, checkpoints and export use those alone.

Sums are exact: float32 holds integers below 2**24, and where a sum could leave that range, or on a device whose
convolutions may not sum exactly, float64 takes over.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy.network import Norm, QuantConv2d, QuantLayer, pad_image, weight_to_quantize

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
from .frozen_modules import FrozenModule, Grid, rounded_codes

EXACT_FLOAT32 = 2**24


class FrozenLayer(FrozenModule):
    """Convolution or linear layer with the operations after it: codes in, codes or float logits out. Algebra: `fold`.

    Args:
        layer: the quantized layer.
        norm: BatchNorm after it, if any, whose statistics are constants from now on; or scales and shifts.
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
        """Fold first in training mode: the integers must be those of the parameters saved beside them."""
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
    """Discard the float weights of a frozen model, which has its integers; it can run and be exported, not trained.

    They are four of five bytes that such a model holds. A prepared model that shares them (`freeze`) then has none
    either. A model without frozen layers stays as it is.
    """
    for module in model.modules():
        if isinstance(module, FrozenLayer):
            module.layer.weight.data = torch.empty(0)


def _convolve(layer: QuantLayer, x: Tensor, weight: Tensor) -> Tensor:
    # NNPACK, which torch uses without oneDNN, convolves by Winograd or FFT: sums are not exact.
    with torch.backends.nnpack.flags(enabled=False), torch.autocast(x.device.type, enabled=False):
        if isinstance(layer, QuantConv2d):
            x = pad_image(x, layer)
            return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        return F.linear(x, weight)


def _per_channel(values: Tensor, rank: int) -> Tensor:
    """Reshape [C] so that it broadcasts over [N, C] or [N, C, H, W]."""
    return values.reshape((1, -1) + (1,) * (rank - 2))
