"""The quantizers as pure functions, each with a hand-written backward.

Interval: centre `c`, distance `d > 0`, thresholds `l = c - d` (below: pruned) and `u = c + d` (above:
clipped). `q` is the largest code. `rint` rounds half to even and is passed straight through by the gradient.

Weights (QIL equations 3 to 5, with `alpha = 0.5/d` and `beta = 0.5 - 0.5*c/d`):

    t = clip((|w| - l) / (2d), 0, 1)        w_hat = sign(w) * t**gamma        value = rint(q * w_hat) / q

    inside the interval (0 < t < 1), with k = gamma * t**(gamma - 1):
    d value/dw     = k / (2d)
    d value/dc     = -sign(w) * k / (2d)
    d value/dd     = -sign(w) * k * (t - 1/2) / d
    d value/dgamma = sign(w) * t**gamma * ln(t)
    outside: all zero

Activations are the same with gamma = 1 and without the sign: `x_hat = clip((x - l) / (2d), 0, 1)`.

Ranges (8-bit residual stream; learned step size, Esser et al. 2020, equations 1 to 3): codes `low..high`,
step `s`:

    value = s * clip(rint(x / s), low, high)
    d value/dx = 1 inside, 0 outside        d value/ds = rint(x/s) - x/s inside, `low` or `high` outside

`t` is raised to `gamma - 1`, which is infinite at `t = 0` for `gamma < 1`; `t` is therefore kept at or above
`SMALLEST_T` where the derivative is taken. Nothing is lost: a smaller `t` rounds to code 0 in any bit width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SMALLEST_T = 1e-4


def weight_codes_real(w: Tensor, c: Tensor, d: Tensor, gamma: Tensor | None, q: int) -> Tensor:
    """`q * w_hat`: weight codes before rounding, in [-q, q]; same shape and dtype as `w`."""
    t = ((w.abs() - (c - d)) / (2.0 * d)).clamp(0.0, 1.0)
    if gamma is not None:
        t = t.pow(gamma)
    return t * w.sign() * q


def _weight_backward(
    grad: Tensor, w: Tensor, c: Tensor, d: Tensor, gamma: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    t = (w.abs() - (c - d)) / (2.0 * d)
    grad = grad * ((t > 0) & (t < 1))
    signed = grad * w.sign()
    grad_gamma = None
    if gamma is not None:
        t_safe = t.clamp(SMALLEST_T, 1.0)
        power = t_safe.pow(gamma)
        grad_gamma = (signed * power * t_safe.log()).sum()
        slope = gamma * power / t_safe
        grad, signed = grad * slope, signed * slope
    half = 0.5 / d
    return grad * half, -half * signed.sum(), -(signed * (t - 0.5)).sum() / d, grad_gamma


def _activation_forward(x: Tensor, c: Tensor, d: Tensor, q: int) -> Tensor:
    return (((x - (c - d)) * (0.5 / d)).clamp(0.0, 1.0) * q).round() / q


def _activation_backward(grad: Tensor, x: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    half = 0.5 / d
    t = (x - (c - d)) * half
    grad = grad * ((t > 0) & (t < 1))
    total = grad.sum()
    return grad * half, -half * total, -((grad * t).sum() - 0.5 * total) / d


def _range_forward(x: Tensor, s: Tensor, low: int, high: int) -> Tensor:
    return (x / s).round().clamp(low, high) * s


def _range_backward(grad: Tensor, x: Tensor, s: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    steps = x / s
    code = steps.round()
    inside = (code >= low) & (code <= high)
    slope = torch.where(inside, code - steps, code.clamp(low, high))
    return grad * inside, (grad * slope).sum()


@dataclass
class _Kernels:
    """The arithmetic on activations, as it is written or compiled; weights are too small to gain by it."""

    activation_forward: Callable[..., Any] = _activation_forward
    activation_backward: Callable[..., Any] = _activation_backward
    range_forward: Callable[..., Any] = _range_forward
    range_backward: Callable[..., Any] = _range_backward


_KERNELS = _Kernels()


def compile_quantizers(enabled: bool = True) -> None:
    """Fuse the elementwise passes over each activation into one, for this process.

    Uses torch.compile and needs a C++ compiler. Compiled arithmetic may differ in the last bit. That is as good for
    training; what is evaluated and exported is the frozen model, which does not use these functions.
    """
    for name, function in vars(_Kernels()).items():
        setattr(_KERNELS, name, torch.compile(function, dynamic=True) if enabled else function)


class _QuantizeWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, c: Tensor, d: Tensor, gamma: Tensor | None, q: int) -> Tensor:
        ctx.save_for_backward(w, c, d, gamma)
        return weight_codes_real(w, c, d, gamma, q).round_().div_(q)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*_weight_backward(grads[0], *ctx.saved_tensors), None)


class _QuantizeActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, c: Tensor, d: Tensor, q: int) -> Tensor:
        ctx.save_for_backward(x, c, d)
        result: Tensor = _KERNELS.activation_forward(x, c, d, q)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*_KERNELS.activation_backward(grads[0], *ctx.saved_tensors), None)


class _QuantizeRange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, s: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x, s)
        ctx.limits = low, high
        result: Tensor = _KERNELS.range_forward(x, s, low, high)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*_KERNELS.range_backward(grads[0], *ctx.saved_tensors, *ctx.limits), None, None)


class _RoundStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def quantize_weight(w: Tensor, c: Tensor, d: Tensor, gamma: Tensor | None, q: int) -> Tensor:
    """Quantize weights to `-q/q .. q/q` (module docstring, first equation).

    Args:
        w: weights, any shape, floating point.
        c, d: centre and distance of the interval of `|w|`, scalars in the unit of `w`; `d > 0`.
        gamma: exponent of the transformer, a positive scalar; None means 1.
        q: largest code, `2**(bits-1) - 1`.

    Returns:
        Values `W / q` with integer `W` in [-q, q], same shape and dtype as `w`.
    """
    result: Tensor = _QuantizeWeight.apply(w, c, d, gamma, q)
    return result


def quantize_activation(x: Tensor, c: Tensor, d: Tensor, q: int) -> Tensor:
    """Quantize activations to `0/q .. q/q` (module docstring, second equation).

    Args:
        x: activations, any shape, floating point.
        c, d: centre and distance of the interval of `x`, scalars in the unit of `x`; `d > 0`.
        q: largest code, `2**bits - 1`.

    Returns:
        Values `X / q` with integer `X` in [0, q], same shape and dtype as `x`.
    """
    result: Tensor = _QuantizeActivation.apply(x, c, d, q)
    return result


def quantize_range(x: Tensor, s: Tensor, low: int, high: int) -> Tensor:
    """Quantize to multiples of a learned step (module docstring, third equation).

    Args:
        x: activations, any shape, floating point.
        s: step, a positive scalar in the unit of `x`.
        low, high: smallest and largest code.

    Returns:
        Values `s * X` with integer `X` in [low, high], same shape and dtype as `x`.
    """
    result: Tensor = _QuantizeRange.apply(x, s, low, high)
    return result


def round_straight_through(x: Tensor) -> Tensor:
    """Round half to even; the gradient passes unchanged."""
    result: Tensor = _RoundStraightThrough.apply(x)
    return result
