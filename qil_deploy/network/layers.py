"""Layers of a prepared model: convolution and linear with quantized weights, modules for functional operations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy.config import LayerBits, QuantConfig
from qil_deploy.quantizers import QilWeightQuantizer, WeightQuantizer, weight_quantizer

AVERAGING_BITS = 2  # a weight of 1 needs no more
_SMALLEST_CHANNEL = 2.0**-20


Pads: TypeAlias = tuple[int, int, int, int]
"""Rows and columns of zeros around an image: top, left, bottom, right."""


class PaddedConv2d(nn.Conv2d):
    """Convolution with separate zero padding on each side.

    Attributes:
        pads: the zeros; separate from `padding`, which is none.
    """

    pads: Pads

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002 - as in the base class
        y: Tensor = super()._conv_forward(pad_image(input, self), weight, bias)
        return y


def pads_of(layer: nn.Conv2d) -> Pads:
    """Return the zero padding of a convolution on each side."""
    top, left = pair(layer.padding)
    own: Pads | None = getattr(layer, "pads", None)
    return own or (top, left, top, left)


def pad_image(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """Pad images [N, C, H, W] with the zeros that `layer.padding` does not add."""
    own: Pads | None = getattr(layer, "pads", None)
    if own is None:
        return x
    top, left, bottom, right = own
    return F.pad(x, (left, right, top, bottom))


class QuantConv2d(nn.Conv2d):
    """Convolution of quantized activations with quantized weights (made by `quantize_layer`).

    `y = (conv(x, w_hat) + output_shift) * output_scale + bias` with a learned positive scale. With BatchNorm after it
    there is no bias, and a scale only where BatchNorm keeps the statistics of the float network
    (`QuantConfig.output_scales`). With `channels`, scale and shift are vectors, and the quantizer reads weights in
    units of their channel's size; otherwise there is no shift.
    """

    weight_quantizer: WeightQuantizer
    log_output_scale: nn.Parameter | None
    output_shift: nn.Parameter | None
    channel_sizes: Tensor | None
    pads: Pads | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C_in, H, W] to [N, C_out, H', W']."""
        return _scale_and_shift(self.unscaled(x), self)

    def unscaled(self, x: Tensor) -> Tensor:
        """Return `conv(x, w_hat)`, before output shift, scale and bias."""
        y: Tensor = self._conv_forward(pad_image(x, self), self.weight_quantizer(weight_to_quantize(self)), None)
        return y


class QuantLinear(nn.Linear):
    """Linear layer of quantized activations with quantized weights; see `QuantConv2d` for scale and bias."""

    weight_quantizer: WeightQuantizer
    log_output_scale: nn.Parameter | None
    output_shift: nn.Parameter | None
    channel_sizes: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, features_in] to [N, features_out]."""
        return _scale_and_shift(self.unscaled(x), self)

    def unscaled(self, x: Tensor) -> Tensor:
        """Return `x @ w_hat.T`, before output shift, scale and bias."""
        return F.linear(x, self.weight_quantizer(weight_to_quantize(self)))


class AveragingConv2d(QuantConv2d):
    """Result of `averaging_layer`: weights, scale and bias are buffers, which no optimizer of the caller changes."""


class ChannelAffine(nn.Module):
    """Scale and shift of every channel, `(gain + offset) * x + shift`: layer scale, or constants of the user's code.

    A layer before it absorbs it like a BatchNorm, which it resembles in evaluation mode; it has no statistics.

    Args:
        gain, shift: [C], or [1] for all channels; parameters are trained, other tensors are constants.
        offset: constant added to the gain.
    """

    gain: Tensor
    shift: Tensor

    def __init__(self, gain: Tensor, shift: Tensor, offset: float = 0.0) -> None:
        super().__init__()
        self.offset = offset
        for name, values in (("gain", gain), ("shift", shift)):
            if isinstance(values, nn.Parameter):
                self.register_parameter(name, values)
            else:
                self.register_buffer(name, values)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, ...] to the same shape."""
        shape = (-1,) + (1,) * (x.ndim - 2)
        return (self.gain + self.offset).to(x).reshape(shape) * x + self.shift.to(x).reshape(shape)

    def extra_repr(self) -> str:
        """Number of values, and the constant beside the gain."""
        return f"gains={self.gain.numel()}, shifts={self.shift.numel()}, offset={self.offset}"


QuantLayer = QuantConv2d | QuantLinear
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d
Norm: TypeAlias = BatchNorm | ChannelAffine
"""What a layer in front of it takes in, channel by channel."""


def weight_to_quantize(layer: QuantLayer) -> Tensor:
    """Return the weights that a layer's quantizer reads: divided by the size of their channel, if channels have one."""
    return layer.weight if layer.channel_sizes is None else layer.weight / layer.channel_sizes


def _scale_and_shift(y: Tensor, layer: QuantLayer) -> Tensor:
    steps = ((layer.output_shift, torch.add), (_scale_of(layer), torch.mul), (layer.bias, torch.add))
    for values, combine in steps:
        if values is not None:
            y = combine(y, values[:, None, None] if values.ndim and y.ndim != 2 else values)
    return y


def _scale_of(layer: QuantLayer) -> Tensor | None:
    return None if layer.log_output_scale is None else layer.log_output_scale.exp()


def quantize_layer(
    layer: nn.Conv2d | nn.Linear, bits: LayerBits, *, normalized: bool, scaled: bool, config: QuantConfig
) -> QuantLayer:
    """Return the quantized form of a float layer, with its weights and with an interval set from them.

    Args:
        layer: the float layer; its parameters are taken over, not copied.
        bits: widths; only `weight_bits` matters here.
        normalized: whether BatchNorm follows. It replaces the bias, which the caller has moved into its mean.
        scaled: whether the layer has an output scale; by `config`, one for all channels or one for each.
        config: says by which method weights are quantized.
    """
    result: QuantLayer
    if isinstance(layer, nn.Conv2d):
        result = QuantConv2d(
            layer.in_channels,
            layer.out_channels,
            pair(layer.kernel_size),
            pair(layer.stride),
            pair(layer.padding),
            pair(layer.dilation),
            layer.groups,
            bias=False,
            device="meta",  # its own weights are never read
        )
        result.pads = getattr(layer, "pads", None)
    else:
        result = QuantLinear(layer.in_features, layer.out_features, bias=False, device="meta")
    result.weight = layer.weight
    result.bias = None if normalized else layer.bias
    by_channel = scaled and config.output_scales == "channels"
    result.register_buffer("channel_sizes", _channel_sizes(layer.weight) if by_channel else None)
    result.weight_quantizer = weight_quantizer(bits.weight_bits, config)
    result.weight_quantizer.initialize(weight_to_quantize(result))
    shape = (len(layer.weight),) if by_channel else ()
    result.log_output_scale = nn.Parameter(torch.zeros(shape, dtype=torch.float32)) if scaled else None
    result.output_shift = nn.Parameter(torch.zeros(shape, dtype=torch.float32)) if by_channel else None
    return result


@torch.no_grad()
def _channel_sizes(weight: Tensor) -> Tensor:
    """Return the largest magnitude of each output channel relative to that of all, [C_out, 1, ...].

    A channel of zeros, or of weights so much smaller than others that float32 would lose their ratio, counts as 1.
    """
    largest = weight.detach().abs().amax(tuple(range(1, weight.ndim)), keepdim=True)
    sizes = largest / largest.max()
    return torch.where(sizes >= _SMALLEST_CHANNEL, sizes, torch.ones_like(sizes))


def set_output_scale(layer: QuantLayer, input_unit: float) -> None:
    """Start the output scale at the product of both clipping thresholds, and of the channel's size where it has one.

    Args:
        layer: one with a learned output scale; others are skipped.
        input_unit: the value that 1.0 in the layer's input represents.
    """
    if layer.log_output_scale is not None and not isinstance(layer, AveragingConv2d):
        _, upper = layer.weight_quantizer.thresholds
        with torch.no_grad():
            layer.log_output_scale.fill_(math.log(upper * input_unit))
            if layer.channel_sizes is not None:
                layer.log_output_scale.add_(layer.channel_sizes.flatten().log())


def averaging_layer(
    channels: int, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], divisor: int | None
) -> AveragingConv2d:
    """Return a depthwise convolution that sums each window and divides by `divisor`; it has no parameters.

    Average pooling (and, with a window of one, what carries a lone BatchNorm or ReLU) takes the form of a quantized
    layer: exact sums, one multiplier per channel, and no rounding of its own.

    Args:
        channels: of input and output.
        kernel, stride, padding: of the window; padding adds zeros.
        divisor: None if a BatchNorm follows, which replaces any scale.
    """
    layer = AveragingConv2d(
        channels, channels, kernel, stride, padding, groups=channels, bias=False, dtype=torch.float32
    )
    nn.init.ones_(layer.weight)
    layer.weight_quantizer = QilWeightQuantizer(AVERAGING_BITS)  # whatever the method is: nothing here is learned
    layer.weight_quantizer.set_largest(1.0)
    scale = None if divisor is None else torch.tensor(-math.log(divisor), dtype=torch.float32)
    layer.log_output_scale = None if scale is None else nn.Parameter(scale)
    layer.output_shift = layer.channel_sizes = None
    for module in layer.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach())
    return layer


def affine_layer(gain: Tensor, shift: Tensor, *, normalized: bool) -> AveragingConv2d:
    """Return a depthwise convolution with a window of one that computes `gain * x + shift`; it has no parameters.

    Args:
        gain, shift: [C]; gains are positive.
        normalized: whether a BatchNorm follows. It replaces the shift, which the caller has moved into its
            mean.
    """
    layer = averaging_layer(len(gain), (1, 1), (1, 1), (0, 0), 1)
    layer.log_output_scale = gain.log().float()  # type: ignore[assignment] # a buffer here
    if not normalized:
        del layer.bias
        layer.register_buffer("bias", shift.float())
    return layer


class Add(nn.Module):
    """Sum of two tensors of one shape: a residual connection."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return `a + b`."""
        return a + b


class Product(nn.Module):
    """Product of two tensors that broadcast: a gate and the values it scales."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return `a * b`."""
        return a * b


class Standalone(nn.Module):
    """Identity before a BatchNorm or ReLU that no preceding layer absorbs.

    In `integer` placement an `averaging_layer` with a window of one takes its place.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x


class ImageAffine(Standalone):
    """Normalises an image on the grid of its pixels: `gain * g + shift`, for each channel.

    In `integer` placement an `affine_layer` takes its place.

    Args:
        gain, shift: [C]; gains are positive.
    """

    def __init__(self, gain: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.gain, self.shift = gain, shift

    def forward(self, g: Tensor) -> Tensor:
        """Map [N, C, H, W] to the same shape."""
        gain, shift = (values.to(g)[:, None, None] for values in (self.gain, self.shift))
        return gain * g + shift


class GlobalAveragePool(nn.Module):
    """Mean over height and width, keeping both as 1.

    Args:
        window: number of pixels averaged.
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, 1, 1]."""
        return x.mean((2, 3), keepdim=True)

    def extra_repr(self) -> str:
        """Window."""
        return f"window={self.window}"


def pair(value: int | str | Sequence[int]) -> tuple[int, int]:
    """Return a size given once or per direction as (vertical, horizontal)."""
    if isinstance(value, str):
        raise TypeError(f"padding {value!r} has no fixed size")
    if isinstance(value, int):
        return (value, value)
    first, second = value
    return (first, second)
