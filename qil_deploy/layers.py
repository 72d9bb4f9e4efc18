"""Layers of a prepared model: convolution and linear with quantized weights, modules for functional operations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import LayerBits
from .quantizers import WeightQuantizer


class QuantConv2d(nn.Conv2d):
    """Convolution of quantized activations with quantized weights (made by `quantize_layer`).

    With BatchNorm behind it there is neither bias nor scale; without,
    `y = conv(x, w_hat) * output_scale + bias` with a learned positive scale.
    """

    weight_quantizer: WeightQuantizer
    log_output_scale: nn.Parameter | None

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C_in, H, W] to [N, C_out, H', W']."""
        y = self._conv_forward(x, self.weight_quantizer(self.weight), None)
        return _scale_and_shift(y, self)


class QuantLinear(nn.Linear):
    """Linear layer of quantized activations with quantized weights; see `QuantConv2d` for scale and bias."""

    weight_quantizer: WeightQuantizer
    log_output_scale: nn.Parameter | None

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, features_in] to [N, features_out]."""
        y = F.linear(x, self.weight_quantizer(self.weight))
        return _scale_and_shift(y, self)


QuantLayer = QuantConv2d | QuantLinear


def _scale_and_shift(y: Tensor, layer: QuantLayer) -> Tensor:
    if layer.log_output_scale is not None:
        y = y * layer.log_output_scale.exp()
    if layer.bias is not None:
        y = y + (layer.bias if y.ndim == 2 else layer.bias[:, None, None])
    return y


def quantize_layer(layer: nn.Conv2d | nn.Linear, bits: LayerBits, *, normalized: bool, train_gamma: bool) -> QuantLayer:
    """Return the quantized form of a float layer, with its weights and with an interval set from them.

    Args:
        layer: the float layer; its parameters are taken over, not copied.
        bits: widths; only `weight_bits` matters here.
        normalized: whether BatchNorm follows. It takes the place of output scale and bias: a bias before
            BatchNorm cancels out.
        train_gamma: whether the exponent of the weight transformer is trained.
    """
    result: QuantLayer
    if isinstance(layer, nn.Conv2d):
        result = QuantConv2d(
            layer.in_channels,
            layer.out_channels,
            _pair(layer.kernel_size),
            _pair(layer.stride),
            _pair(layer.padding),
            _pair(layer.dilation),
            layer.groups,
            bias=False,
        )
    else:
        result = QuantLinear(layer.in_features, layer.out_features, bias=False)
    result.weight = layer.weight
    result.bias = None if normalized else layer.bias
    result.weight_quantizer = WeightQuantizer(bits.weight_bits, train_gamma=train_gamma)
    result.weight_quantizer.initialize(layer.weight)
    result.log_output_scale = None if normalized else nn.Parameter(torch.zeros(()))
    return result


def set_output_scale(layer: QuantLayer, input_unit: float) -> None:
    """Start the output scale at the product of both clipping thresholds.

    Args:
        layer: a layer without BatchNorm behind it.
        input_unit: the value that 1.0 in the layer's input stands for.
    """
    if layer.log_output_scale is not None:
        _, upper = layer.weight_quantizer.thresholds
        with torch.no_grad():
            layer.log_output_scale.fill_(math.log(upper * input_unit))


class Add(nn.Module):
    """Sum of two tensors of one shape: a residual connection."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return `a + b`."""
        return a + b


class GlobalAveragePool(nn.Module):
    """Mean over height and width, keeping both as 1.

    Attributes:
        window: number of pixels averaged; set when the shapes are known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.window = 0

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C, 1, 1]."""
        return x.mean((2, 3), keepdim=True)

    def extra_repr(self) -> str:
        """Window."""
        return f"window={self.window}"


def _pair(value: int | str | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, str):
        raise TypeError(f"padding {value!r} has no fixed size")
    if isinstance(value, int):
        return (value, value)
    first, second = value
    return (first, second)
