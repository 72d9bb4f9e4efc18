"""The quantizers as modules: few parameters each, dimensionless, positive by construction where they must be.

Interval parameters (decision 0009):

    d = exp(log_distance)    c = center_ratio * d    so   l = d * (center_ratio - 1),   u = d * (center_ratio + 1)
    gamma = exp(2 * tanh(gamma_raw / 2))    between exp(-2) and exp(2), and 1 with slope 1 at gamma_raw = 0
    s = exp(log_step)

An optimizer step of a given size therefore means the same relative change in every layer, and no step,
however large, makes `d`, `gamma` or `s` zero, negative or infinite.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .functional import quantize_activation, quantize_range, quantize_weight, weight_codes_real
from .thresholds import best_threshold, strided_sample

GAMMA_LOG_BOUND = 2.0


class IntervalQuantizer(nn.Module):
    """An interval with its parameters; what weight and activation quantizers share.

    Args:
        largest_code: `q`, the code of the clipping threshold.
    """

    def __init__(self, bits: int, largest_code: int) -> None:
        super().__init__()
        self.bits = bits
        self.largest_code = largest_code
        self.log_distance = nn.Parameter(torch.zeros((), dtype=torch.float32))
        self.center_ratio = nn.Parameter(torch.ones((), dtype=torch.float32))

    @property
    def distance(self) -> Tensor:
        """`d`, a positive scalar in the unit of the quantized tensor."""
        return self.log_distance.exp()

    @property
    def center(self) -> Tensor:
        """`c`, a scalar in the unit of the quantized tensor."""
        return self.center_ratio * self.distance

    @property
    def thresholds(self) -> tuple[float, float]:
        """`(l, u)`: what lies below `l` is pruned, what lies above `u` is clipped."""
        center, distance = float(self.center.detach()), float(self.distance.detach())
        return center - distance, center + distance

    @torch.no_grad()
    def set_thresholds(self, lower: float, upper: float) -> None:
        """Set the interval to `[lower, upper]`.

        Raises:
            ValueError: unless `lower < upper`, both finite.
        """
        if not (math.isfinite(lower) and math.isfinite(upper) and lower < upper):
            raise ValueError(f"an interval needs finite thresholds, lower below upper; got [{lower}, {upper}].")
        distance = (upper - lower) / 2
        self.log_distance.fill_(math.log(distance))
        self.center_ratio.fill_((upper + lower) / 2 / distance)

    def extra_repr(self) -> str:
        """Bits and interval."""
        lower, upper = self.thresholds
        return f"bits={self.bits}, interval=[{lower:.4g}, {upper:.4g}]"


class WeightQuantizer(IntervalQuantizer):
    """QIL weight quantizer: values `W / q` with codes `W` in `-q..q`, `q = 2**(bits-1) - 1`.

    Args:
        bits: 2 to 8.
        train_gamma: whether the exponent of the transformer is a parameter; it is 1 otherwise.
    """

    def __init__(self, bits: int, *, train_gamma: bool = False) -> None:
        super().__init__(bits, 2 ** (bits - 1) - 1)
        self.gamma_raw = nn.Parameter(torch.zeros((), dtype=torch.float32)) if train_gamma else None

    @property
    def gamma(self) -> Tensor | None:
        """The exponent, a scalar in (exp(-2), exp(2)); None stands for 1."""
        if self.gamma_raw is None:
            return None
        return (GAMMA_LOG_BOUND * torch.tanh(self.gamma_raw / GAMMA_LOG_BOUND)).exp()

    def forward(self, weight: Tensor) -> Tensor:
        """Return the quantized weights, in [-1, 1], of the shape of `weight`."""
        return quantize_weight(weight, self.center, self.distance, self.gamma, self.largest_code)

    def codes_real(self, weight: Tensor) -> Tensor:
        """Return the codes before rounding, in [-q, q]; `rint` of them are the codes."""
        return weight_codes_real(weight, self.center, self.distance, self.gamma, self.largest_code)

    @torch.no_grad()
    def initialize(self, weight: Tensor) -> None:
        """Set the interval to `[0, u]` with the `u` of least squared error for these weights."""
        self.set_thresholds(0.0, best_threshold(strided_sample(weight).abs(), self.largest_code))


class ActivationQuantizer(IntervalQuantizer):
    """QIL activation quantizer: values `X / q` with codes `X` in `0..q`, `q = 2**bits - 1`.

    Args:
        bits: 2 to 8.
        signed: whether activations can be negative; the interval then starts symmetric around 0.
    """

    def __init__(self, bits: int, *, signed: bool = False) -> None:
        super().__init__(bits, 2**bits - 1)
        self.signed = signed

    def forward(self, x: Tensor) -> Tensor:
        """Return the quantized activations, in [0, 1], of the shape of `x`."""
        return quantize_activation(x, self.center, self.distance, self.largest_code)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> float:
        """Return the largest value of the interval of least squared error for these activations."""
        if self.signed:
            return best_threshold(strided_sample(x).abs(), (self.largest_code + 1) // 2)
        return best_threshold(strided_sample(x).clamp_min(0), self.largest_code)

    def set_largest(self, largest: float) -> None:
        """Set the interval to `[0, largest]`, or `[-largest, largest]` where activations can be negative."""
        self.set_thresholds(-largest if self.signed else 0.0, largest)


class RangeQuantizer(nn.Module):
    """Uniform codes with a learned step, for the residual stream, pooled features and the last layer's input.

    Args:
        signed: codes `-128..127` (stored as uint8 with zero point 128), otherwise `0..255` with zero point 0.
    """

    def __init__(self, *, signed: bool) -> None:
        super().__init__()
        self.signed = signed
        self.low, self.high = (-128, 127) if signed else (0, 255)
        self.log_step = nn.Parameter(torch.zeros((), dtype=torch.float32))

    @property
    def step(self) -> Tensor:
        """`s`, a positive scalar in the unit of the quantized tensor."""
        return self.log_step.exp()

    @property
    def zero_point(self) -> int:
        """The uint8 code of value 0."""
        return -self.low

    def forward(self, x: Tensor) -> Tensor:
        """Return `s * code`, of the shape of `x`."""
        return quantize_range(x, self.step, self.low, self.high)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> float:
        """Return the largest value whose range has the least squared error for these activations."""
        sample = strided_sample(x)
        return best_threshold(sample.abs() if self.signed else sample.clamp_min(0), self.high)

    @torch.no_grad()
    def set_largest(self, largest: float) -> None:
        """Set the step so that the largest code stands for `largest > 0`."""
        self.log_step.fill_(math.log(largest / self.high))

    def extra_repr(self) -> str:
        """Sign and range."""
        step = float(self.step.detach())
        return f"bits=8, range=[{self.low * step:.4g}, {self.high * step:.4g}]"


class InputQuantizer(nn.Module):
    """The uint8 grid of the image: a fixed scale and zero point (see `preprocessing`)."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.int64))

    def codes(self, x: Tensor) -> Tensor:
        """Return the uint8 codes of normalised images, as float32 integers in 0..255."""
        return (x / self.scale).round_().add_(self.zero_point).clamp_(0, 255)

    def forward(self, x: Tensor) -> Tensor:
        """Return the images on their grid; images made from uint8 pixels pass unchanged."""
        return (self.codes(x) - self.zero_point) * self.scale

    def extra_repr(self) -> str:
        """Scale and zero point."""
        return f"bits=8, scale={float(self.scale):.6g}, zero_point={int(self.zero_point)}"


def interval_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of all quantizers of a model (they get their own rate and no weight decay)."""
    kinds = (IntervalQuantizer, RangeQuantizer)
    return [
        parameter
        for module in model.modules()
        if isinstance(module, kinds)
        for parameter in module.parameters(recurse=False)
        if parameter.requires_grad
    ]
