"""The 8-bit grids that every method shares: a learned step for ranges, and the fixed grid of the image.

Ranges (8-bit residual stream; learned step size, Esser et al. 2020, equations 1 to 3): codes `low..high`,
step `s`:

    value = s * clip(rint(x / s), low, high)        s = exp(log_step)
    d value/dx = 1 inside, 0 outside        d value/ds = rint(x/s) - x/s inside, `low` or `high` outside
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from qil_deploy.preprocessing import Preprocessing

from .kernels import as_summed, between, full_precision, run_backward, run_forward
from .thresholds import best_threshold, strided_sample


def _range_forward(out: Tensor, x: Tensor, s: Tensor, low: int, high: int) -> None:
    """Write the values."""
    torch.div(x, s, out=out).round_().clamp_(low, high).mul_(s)


def _range_backward(out: Tensor, grad: Tensor, x: Tensor, s: Tensor, low: int, high: int) -> tuple[Tensor]:
    """Write the gradient of `x`; return the sum that is the gradient of `s`."""
    steps = x / s
    code = steps.round()
    limits = low - 0.5, high + 0.5
    out.copy_(between(grad, code, *limits))
    return (code.clamp(low, high).sub_(between(steps, code, *limits)).dot(grad),)


class _QuantizeRange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, s: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x, s)
        ctx.limits = low, high
        return run_forward(_range_forward, x, s, low, high)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, (by_step,) = run_backward(_range_backward, as_summed, grads[0], *ctx.saved_tensors, *ctx.limits)
        return grad_x, by_step, None, None


def quantize_range(x: Tensor, s: Tensor, low: int, high: int) -> Tensor:
    """Quantize to multiples of a learned step (module docstring, third equation).

    Args:
        x: activations, any shape, floating point.
        s: step, a positive scalar in the unit of `x`.
        low, high: smallest and largest code.

    Returns:
        Values `s * X` with integer `X` in [low, high], of the shape of `x`, float64 if `x` is and otherwise float32.
    """
    result: Tensor = _QuantizeRange.apply(full_precision(x), s, low, high)
    return result


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
        """Set the step so that the largest code represents `largest > 0`."""
        self.log_step.fill_(math.log(largest / self.high))

    def extra_repr(self) -> str:
        """Sign and range."""
        step = float(self.step.detach())
        return f"bits=8, range=[{self.low * step:.4g}, {self.high * step:.4g}]"


class InputQuantizer(nn.Module):
    """The uint8 grid of the image: a fixed scale and zero point (see `preprocessing`).

    Args:
        scale, zero_point: of the grid.
        shift, unit: pixels come as `(pixel - shift) / unit`, one number of each per channel; None where they come on
            the grid.
    """

    scale: Tensor
    zero_point: Tensor
    shift: Tensor | None
    unit: Tensor | None

    def __init__(
        self,
        scale: float,
        zero_point: int,
        shift: Sequence[float] | None = None,
        unit: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.int64))
        # Not in the state: checkpoints have it in their headers.
        for name, values in (("shift", shift), ("unit", unit)):
            column = None if values is None else torch.tensor(list(values), dtype=torch.float32)[:, None, None]
            self.register_buffer(name, column, persistent=False)

    @classmethod
    def of(cls, pixels: Preprocessing) -> Self:
        """Return the quantizer of images with a given preprocessing."""
        if not pixels.is_per_channel:
            return cls(pixels.scale, pixels.zero_point)
        return cls(pixels.scale, pixels.zero_point, pixels.shift.tolist(), (1.0 / pixels.factor).tolist())

    def codes(self, x: Tensor) -> Tensor:
        """Return the uint8 codes of normalised images, as float32 integers in 0..255."""
        if self.shift is not None and self.unit is not None:
            return (x * self.unit).add_(self.shift).round_().clamp_(0, 255)
        return (x / self.scale).round_().add_(self.zero_point).clamp_(0, 255)

    def forward(self, x: Tensor) -> Tensor:
        """Return the images on their grid; images made from uint8 pixels pass unchanged, but for their unit."""
        return (self.codes(x) - self.zero_point) * self.scale

    def maps_like(self, other: InputQuantizer) -> bool:
        """Whether it maps the same images to the same codes on the same grid."""
        own, its = (
            [quantizer.scale, quantizer.zero_point, quantizer.shift, quantizer.unit] for quantizer in (self, other)
        )
        return all(
            torch.equal(a, b) if a is not None and b is not None else a is b for a, b in zip(own, its, strict=True)
        )

    def describe(self) -> str:
        """Describe the grid in a message."""
        grid = f"scale {float(self.scale):.9g} and zero point {int(self.zero_point)}"
        if self.shift is None or self.unit is None:
            return grid
        means, deviations = (
            ", ".join(f"{v:.6g}" for v in (x / 255).flatten().tolist()) for x in (self.shift, self.unit)
        )
        return f"{grid} (mean {means} and std {deviations} of the channels)"

    def extra_repr(self) -> str:
        """Scale and zero point."""
        grid = f"bits=8, scale={float(self.scale):.6g}, zero_point={int(self.zero_point)}"
        return grid if self.shift is None else f"{grid}, per_channel=True"
