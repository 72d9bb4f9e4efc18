"""Fold a quantized layer, its BatchNorm and the quantizer after it into integers.

A layer reads codes `X` of value `(X - x_zero_point) * x_scale` and has real codes `v = q_W * w_hat`.
Its result after BatchNorm (or output scale and bias) is

    z_k = gain_k * sum((X - x_zero_point) * W_k) * x_scale / q_W + shift_k          W = rint(v)

    BatchNorm:    gain = scale * norm_gain             shift = norm_bias - norm_gain * mean
                  norm_gain = norm_weight / sqrt(var + eps), scale = 1 for a layer without an output scale
    otherwise:    gain = scale                         shift = bias
    after which a `ChannelAffine` multiplies both by its own gain, and adds its own shift. Where moves between layer
    and BatchNorm make one channel of several (`network.behind_moves`), each of these has that one's gain and shift, and
    may have a bias of its own, which adds `norm_gain * bias` to its shift,

and becomes the code `rint((z - y_offset) / y_scale) + y_zero_point`. The runtime computes

    acc_k = sum((X - x_zero_point) * spread_k * sign(gain_k) * W_k) + bias_k            exact, int32
    code  = clip(rint(float32(acc_k) * M_k) + y_zero_point, low, high)

    w_scale_k = abs(gain_k) / (q_W * spread_k)
    bias_k    = rint((shift_k - y_offset) / (x_scale * w_scale_k))
    M_k       = float32(float32(x_scale * w_scale_k) / y_scale)

BatchNorm never touches the weight grid: the codes stay, and gain goes into scale, sign and bias. `spread` is
an integer that makes the bias grid finer: the largest that keeps weights in int8 and sums of two products in
int16, and smaller for a channel whose bias would leave int32. A channel whose bias does not fit even at
`spread = 1` has so small a gain (zero, for instance) that its convolution cannot move a code: its weights become
zero and the constant goes into the bias, on a grid of its own.

Everything per channel is float64 and cast once; the rounding passes gradients straight through, so that a
frozen model can be trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qil_deploy.network import ChannelAffine, Norm, QuantLayer
from qil_deploy.quantizers import WeightQuantizer, round_straight_through

from .bounds import INT16_MAX

INT8_MAX = 127
BIAS_LIMIT = 2**30
# A dead channel's constant is kept within so many output codes (all beyond saturates), in steps of 2**-14.
_DEAD_CODES = 1024.0
_DEAD_STEPS = 2.0**14
_CODES_AT_ONCE = 1 << 20  # whole blocks of the quantizers' kernels


@dataclass(frozen=True, kw_only=True)
class OutputGrid:
    """Grid of a layer's output codes; `scale` is None for float logits.

    Attributes:
        scale: step, float32-representable, positive.
        offset: the value of the grid's zero point (the pruning threshold of an interval, 0 for a range).
    """

    scale: float | None
    offset: float


@dataclass(frozen=True, kw_only=True)
class FoldedChannels:
    """Result of folding a layer's channels.

    Attributes:
        signs: of the weight codes, -1, 1, or 0 in a dead channel; float64 [C_out].
        spread: int64 [C_out].
        bias: float64 integers [C_out].
        w_scale: float32 [C_out], positive.
    """

    signs: Tensor
    spread: Tensor
    bias: Tensor
    w_scale: Tensor


@dataclass(frozen=True, kw_only=True)
class FoldedLayer:
    """The integers of one layer, as tensors whose values are exact.

    Attributes:
        codes: `sign(gain) * W`, float32 integers, the weight's shape.
        spread: int64 [C_out].
        bias: float64 integers [C_out].
        w_scale: float32 [C_out], positive.
    """

    codes: Tensor
    spread: Tensor
    bias: Tensor
    w_scale: Tensor

    def multiplier(self, x_scale: Tensor, y_scale: Tensor | None) -> Tensor:
        """Return `M`, float32 [C_out]; without `y_scale` the scale of float logits."""
        scale = x_scale * self.w_scale
        return scale if y_scale is None else scale / y_scale


def gain_and_shift(layer: QuantLayer, norm: Norm | None) -> tuple[Tensor, Tensor]:
    """Return the gain and shift applied to the sum, float64 [C_out] each (module docstring).

    Args:
        layer: a convolution or linear layer.
        norm: the BatchNorm after it, which has running statistics, or scales and shifts; None if there is neither. Each
            of its channels covers equally many of the layer's, next to each other.
    """
    ones = torch.ones(layer.weight.shape[0], dtype=torch.float64, device=layer.weight.device)
    scale = ones if layer.log_output_scale is None else ones * layer.log_output_scale.double().exp()
    moved = None if layer.output_shift is None else scale * layer.output_shift.double()
    if norm is None or isinstance(norm, ChannelAffine):
        bias = 0.0 * ones if layer.bias is None else layer.bias.double()
        shift = bias if moved is None else moved + bias  # keeps every bit, even of -0.0
        if norm is None:
            return scale, shift
        gain = _repeated(norm.gain.double() + norm.offset, len(ones))
        added = _repeated(norm.shift.double(), len(ones))
        return scale * gain, shift * gain + added
    if norm.running_mean is None or norm.running_var is None:
        raise TypeError("BatchNorm without running statistics cannot be folded")
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * gain
    if norm.affine:
        gain, shift = gain * norm.weight.double(), shift * norm.weight.double() + norm.bias.double()
    gain, shift = _repeated(gain, len(ones)), _repeated(shift, len(ones))
    if layer.bias is not None:
        shift = shift + gain * layer.bias.double()
    return scale * gain, shift if moved is None else shift + gain * moved


def _repeated(values: Tensor, channels: int) -> Tensor:
    """Return values of a norm's channels for a layer's channels, of which there may be more."""
    return values.repeat_interleave(channels // len(values))


def largest_spread(largest_weight_code: int, largest_activation: int) -> int:
    """Return the largest integer that keeps weight codes within int8 and sums of two products within int16.

    Args:
        largest_weight_code: `q_W`.
        largest_activation: largest uint8 code; 0 where an interval prunes all that a bounded ReLU lets through.
    """
    limit = min(INT8_MAX, INT16_MAX // (2 * max(1, largest_activation)))
    return max(1, limit // largest_weight_code)


def fold(codes_real: Tensor, channels: FoldedChannels) -> FoldedLayer:
    """Round the weight codes of a layer and give them their signs.

    Args:
        codes_real: weight codes before rounding, `q_W * w_hat`, [C_out, ...].
        channels: from `fold_channels`.

    Returns:
        The integers; differentiable in `codes_real`, and in what the channels were made of.
    """
    signs = channels.signs.to(codes_real.dtype).reshape((-1,) + (1,) * (codes_real.ndim - 1))
    return FoldedLayer(
        codes=round_straight_through(codes_real) * signs,
        spread=channels.spread,
        bias=channels.bias,
        w_scale=channels.w_scale,
    )


@torch.no_grad()
def integer_codes(quantizer: WeightQuantizer, weight: Tensor) -> Tensor:
    """Return the weight codes, int8, of the shape of `weight`; floats exist for a part of them at a time."""
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    parts = zip(codes.reshape(-1).split(_CODES_AT_ONCE), weight.reshape(-1).split(_CODES_AT_ONCE), strict=True)
    for part, floats in parts:
        part.copy_(quantizer.codes_real(floats).round_())
    return codes


def fold_channels(
    q_w: int, gain: Tensor, shift: Tensor, x_scale: Tensor, output: OutputGrid, spread: int
) -> FoldedChannels:
    """Fold the operations that follow the sums of one layer (module docstring).

    Args:
        q_w: largest weight code.
        gain, shift: float64 [C_out].
        x_scale: float32 scalar, step of the input codes.
        output: grid of the output codes, or logits.
        spread: from `largest_spread`.

    Returns:
        The result; differentiable in `gain` and `shift`.
    """
    x_step = x_scale.double()
    constant = shift - output.offset
    with torch.no_grad():
        bias_unspread = constant * q_w / (x_step * gain.abs())
        room = torch.where(bias_unspread == 0, float(spread), BIAS_LIMIT / bias_unspread.abs())
        # The smallest normal float32 scales that a runtime may flush to zero count as zero gain too.
        smallest = gain.abs() / (q_w * spread)
        tiny = (x_step * smallest < torch.finfo(torch.float32).tiny * 2**24) | (
            smallest < torch.finfo(torch.float32).tiny
        )
        dead = ~(room >= 1.0) | tiny
        spreads = torch.where(dead, 1.0, room.clamp(1.0, float(spread)).floor())
        dead_step = _dead_step(constant, output)
    w_scale_live = gain.abs() / (q_w * spreads)
    w_scale = torch.where(dead, dead_step / x_step, w_scale_live).float()
    if output.scale is not None:
        limit = _DEAD_CODES * output.scale
        constant = torch.where(dead, constant.clamp(-limit, limit), constant)
    bias = round_straight_through(constant / (x_step * w_scale.double()))
    signs = torch.where(dead, 0.0, gain.sign()).detach()
    return FoldedChannels(signs=signs, spread=spreads.long(), bias=bias, w_scale=w_scale)


def _dead_step(constant: Tensor, output: OutputGrid) -> Tensor:
    """Value of one bias step in a dead channel, float64 [C_out]."""
    if output.scale is not None:
        return torch.full_like(constant, output.scale / _DEAD_STEPS)
    return constant.abs().clamp_min(1e-6) / 2.0**24
