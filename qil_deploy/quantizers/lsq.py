"""Learned step size quantization (LSQ; Esser et al., ICLR 2020): one step per tensor is learned.

    code = clip(rint(x / s), low, high)        weights: -q..q
                                               activations: 0..q, or -(q+1)/2..(q-1)/2 where they can be negative

The paper then uses `s * code`. Here, as with every method (`contract`), a layer reads `code / q`, or `(code - low) / q`
for signed ones, and the scale of its result belongs to BatchNorm or to its output scale:

    value = (code - offset) / q
    d value/dx = 1 / (q*s) inside, 0 outside        d value/ds = -x / (q * s**2) inside, 0 outside

(inside: `low < x/s < high`). That learns the same. With `g` the gradient of the loss by `s * code`, the paper's
derivative by `s` is

    sum(g * (rint(x/s) - x/s)) inside + sum(g * limit) outside  =  sum(g * code) - sum(g * x/s) inside

After a BatchNorm the loss does not depend on the scale of its input, so `sum(g * code)` is zero; with an output
scale it is the gradient of that scale. What is left is the derivative above.

The gradient passes the rounding as `kernels` says, plain or scaled by `gradient_scaling`.

The gradient of `s` is scaled by `1 / sqrt(N * high)` (the paper's section 2.2), where N counts the weights, or the
activations of one image.

What is stored is where codes end, `s = exp(log_largest) / n` with `n` codes from 0 to there: dimensionless, with the
gradient of `log(s)`, and with one meaning at every bit width. A stage that follows one of more bits keeps the
interval; the same step would cut it to a half or a third.

Steps start with the least squared error. The paper starts at `2 * mean(abs(x)) / sqrt(high)`, which leaves most codes
unused at 7 bits, and a model that is only calibrated (`sensitivity`) would stay there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .contract import ActivationQuantizer, IntervalQuantizer, Method, WeightQuantizer
from .kernels import between, full_precision, run_backward, run_forward, scale_gradient

if TYPE_CHECKING:
    from qil_deploy.config import QuantConfig


def _forward(out: Tensor, x: Tensor, s: Tensor, low: int, high: int, offset: int, q: int) -> None:
    """Write the values."""
    torch.div(x, s, out=out).round_().clamp_(low, high).sub_(offset).div_(q)


def _forward_real(out: Tensor, x: Tensor, s: Tensor, low: int, high: int) -> None:
    """Write the codes before rounding."""
    torch.div(x, s, out=out).clamp_(low, high)


def _backward(
    out: Tensor, grad: Tensor, x: Tensor, s: Tensor, low: int, high: int, q: int, _step_factor: float, scaling: float
) -> tuple[Tensor]:
    """Write the gradient of `x`; return the sum from which the gradient of `s` is computed."""
    grad = grad / q
    if scaling:
        real = torch.empty_like(x)
        _forward_real(real, x, s, low, high)
        grad = scale_gradient(grad, real, scaling)
    steps = x / s
    inside = between(grad, steps, low, high)
    torch.div(inside, s, out=out)
    return (inside.dot(steps.clamp_(low, high)),)


def _of_step(
    sums: tuple[Tensor], s: Tensor, _low: int, _high: int, _q: int, step_factor: float, _scaling: float
) -> tuple[Tensor]:
    """Return the gradient of `s`."""
    return (-step_factor * sums[0] / s,)


class _Steps(torch.autograd.Function):
    """Values of codes, or with `offset` None the codes before rounding."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        s: Tensor,
        limits: tuple[int, int],
        offset: int | None,
        q: int,
        step_factor: float,
        scaling: float,
    ) -> Tensor:
        ctx.save_for_backward(x, s)
        ctx.constants = *limits, q, step_factor, scaling
        if offset is None:
            return run_forward(_forward_real, x, s, *limits)
        return run_forward(_forward, x, s, *limits, offset, q)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, (by_step,) = run_backward(_backward, _of_step, grads[0], *ctx.saved_tensors, *ctx.constants)
        return grad_x, by_step, None, None, None, None, None


def quantize_by_steps(
    x: Tensor,
    s: Tensor,
    low: int,
    high: int,
    *,
    offset: int,
    q: int,
    step_factor: float = 1.0,
    gradient_scaling: float = 0.0,
) -> Tensor:
    """Return `(clip(rint(x / s), low, high) - offset) / q` (module docstring).

    Args:
        x: weights or activations, any shape, floating point.
        s: step, a positive scalar in the unit of `x`.
        low, high: smallest and largest code.
        offset: the code that represents 0.
        q: what codes are divided by.
        step_factor: of the gradient of `s`.
        gradient_scaling: of the rounding, in steps between codes (`kernels`).

    Returns:
        Values of the shape of `x`, float64 if `x` is and otherwise float32.
    """
    result: Tensor = _Steps.apply(full_precision(x), s, (low, high), offset, q, step_factor, gradient_scaling)
    return result


def codes_by_steps(x: Tensor, s: Tensor, low: int, high: int, *, step_factor: float = 1.0) -> Tensor:
    """Return `clip(x / s, low, high)`: codes before rounding; arguments as for `quantize_by_steps`."""
    result: Tensor = _Steps.apply(full_precision(x), s, (low, high), None, 1, step_factor, 0.0)
    return result


class _LsqInterval(IntervalQuantizer):
    """A learned step; the interval is the range of its codes, `[low * s, (low + q) * s]`.

    Attributes:
        lowest: `low`, the number of the first code, not above 0.
    """

    lowest = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log_largest = nn.Parameter(torch.zeros((), dtype=torch.float32))

    @property
    def step(self) -> Tensor:
        """`s`, a positive scalar in the unit of the quantized tensor."""
        return self.log_largest.exp() / (-self.lowest or self.largest_code)

    @property
    def distance(self) -> Tensor:
        """Half the range of the codes: `q * s / 2`."""
        return self.step * (0.5 * self.largest_code)

    @property
    def center(self) -> Tensor:
        """The middle of the range of the codes: `(low + q/2) * s`."""
        return self.step * (self.lowest + 0.5 * self.largest_code)

    @torch.no_grad()
    def set_largest(self, largest: float) -> None:
        """Set the range of the codes to 0 to `largest`, or from `-largest` if there are negative ones.

        Raises:
            ValueError: unless it is positive and finite.
        """
        if not 0 < largest < math.inf:
            raise ValueError(f"the end of an interval has to be positive and finite; got {largest}.")
        self.log_largest.fill_(math.log(largest))


class LsqWeightQuantizer(_LsqInterval, WeightQuantizer):
    """LSQ weight quantizer: values `W / q` with codes `W` in `-q..q`, `q = 2**(bits-1) - 1`; magnitudes from 0."""

    def forward(self, weight: Tensor) -> Tensor:
        """Return the quantized weights, in [-1, 1], of the shape of `weight`."""
        q, factor = self.largest_code, _step_factor(weight.numel(), self.largest_code)
        values = quantize_by_steps(
            weight, self.step, -q, q, offset=0, q=q, step_factor=factor, gradient_scaling=self.gradient_scaling
        )
        return self.let_return(values, weight)

    def codes_real(self, weight: Tensor) -> Tensor:
        """Return the codes before rounding, in [-q, q]; `rint` of them are the codes."""
        q = self.largest_code
        codes = codes_by_steps(weight, self.step, -q, q, step_factor=_step_factor(weight.numel(), q))
        return self.let_return(codes, weight, q)


class LsqActivationQuantizer(_LsqInterval, ActivationQuantizer):
    """LSQ activation quantizer: values `X / q` with codes `X` in `0..q`, `q = 2**bits - 1`.

    Args:
        bits: 2 to 8.
        signed: whether activations can be negative; half the codes then represent negative ones.
        gradient_scaling: of the rounding, in steps between codes (`kernels`).
    """

    def __init__(self, bits: int, *, signed: bool = False, gradient_scaling: float = 0.0) -> None:
        super().__init__(bits, signed=signed, gradient_scaling=gradient_scaling)
        self.lowest = -(self.largest_code + 1) // 2 if signed else 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the quantized activations, in [0, 1], of the shape of `x`."""
        q, low = self.largest_code, self.lowest
        factor = _step_factor(x.numel() // max(1, len(x)), low + q)
        return quantize_by_steps(
            x, self.step, low, low + q, offset=low, q=q, step_factor=factor, gradient_scaling=self.gradient_scaling
        )


def _step_factor(count: int, high: int) -> float:
    """Return the paper's factor on the gradient of a step."""
    return 1.0 / math.sqrt(max(1, count) * high)


def _weights(bits: int, config: QuantConfig) -> WeightQuantizer:
    return LsqWeightQuantizer(bits, gradient_scaling=config.gradient_scaling, returning=config.returning_weights)


def _activations(bits: int, signed: bool, config: QuantConfig) -> ActivationQuantizer:
    return LsqActivationQuantizer(bits, signed=signed, gradient_scaling=config.gradient_scaling)


LSQ = Method(name="lsq", weights=_weights, activations=_activations)
