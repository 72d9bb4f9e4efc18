"""Quantization interval learning (QIL; Jung et al., CVPR 2019): centre and distance of each interval are learned.

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

`t` is raised to `gamma - 1`, which is infinite at `t = 0` for `gamma < 1`; the derivative below `SMALLEST_T` is
therefore taken at `SMALLEST_T`.

The gradient passes the rounding as `kernels` says, plain or scaled by `gradient_scaling`.

What is learned are dimensionless parameters (decision 0009):

    d = exp(log_distance)    c = center_ratio * d    so   l = d * (center_ratio - 1),   u = d * (center_ratio + 1)
    gamma = exp(2 * tanh(gamma_raw / 2))    between exp(-2) and exp(2), and 1 with slope 1 at gamma_raw = 0

An optimizer step of a given size therefore means the same relative change in every layer, and no step,
however large, makes `d` or `gamma` zero, negative or infinite.
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

SMALLEST_T = 1e-4
GAMMA_LOG_BOUND = 2.0
_LARGEST_CENTER_RATIO = 1e6  # beyond, both thresholds are the same float32 number


def _weight_forward(out: Tensor, w: Tensor, c: Tensor, d: Tensor, gamma: Tensor | None, q: int) -> None:
    """Write the real codes `q * w_hat`."""
    torch.abs(w, out=out).sub_(c - d)
    if gamma is None:
        out.mul_(0.5 * q / d).clamp_(0.0, q)
    else:
        # t**gamma; at least twice as fast as pow, and right to the same absolute error.
        out.mul_(0.5 / d).clamp_(0.0, 1.0).log_().mul_(gamma).exp_().mul_(q)
    out.mul_(w.sign())


def _weight_forward_rounded(out: Tensor, w: Tensor, c: Tensor, d: Tensor, gamma: Tensor | None, q: int) -> None:
    """Write the values."""
    _weight_forward(out, w, c, d, gamma, q)
    out.round_().div_(q)


def _weight_backward(
    out: Tensor, grad: Tensor, w: Tensor, c: Tensor, d: Tensor, gamma: Tensor | None, q: int, scaling: float
) -> tuple[Tensor, ...]:
    """Write the gradient of `w`; return the sums from which those of `c`, `d` and `gamma` are computed."""
    if scaling:
        real = torch.empty_like(w)
        _weight_forward(real, w, c, d, gamma, q)
        grad = scale_gradient(grad, real, scaling)
    t = w.abs().sub_(c - d).mul_(0.5 / d)
    inside = between(grad, t, 0.0, 1.0)
    sign = w.sign()
    if gamma is None:
        torch.mul(inside, 0.5 / d, out=out)
        signed = sign.mul_(inside)
        return signed.sum(), signed.dot(t)
    t_safe = t.clamp(SMALLEST_T, 1.0)
    log = t_safe.log()
    power = (log * gamma).exp_()
    by_gamma = log.mul_(power).mul_(inside).dot(sign)
    inside.mul_(power.div_(t_safe).mul_(gamma))
    torch.mul(inside, 0.5 / d, out=out)
    signed = sign.mul_(inside)
    return signed.sum(), signed.dot(t), by_gamma


def _weight_scalars(
    sums: tuple[Tensor, ...], _c: Tensor, d: Tensor, _gamma: Tensor | None, _q: int, _scaling: float
) -> tuple[Tensor, ...]:
    """Return the gradients of `c` and `d`, and of `gamma` if it is trained."""
    total, by_t, *by_gamma = sums
    return (*_interval_gradients(total, by_t, d), *by_gamma)


def _interval_gradients(total: Tensor, by_t: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of `c` and `d` from the sums of `g * k` and of `g * k * t`."""
    return -0.5 * total / d, (0.5 * total - by_t) / d


def _activation_forward(out: Tensor, x: Tensor, c: Tensor, d: Tensor, q: int) -> None:
    """Write the real codes."""
    torch.sub(x, c - d, out=out).mul_(0.5 * q / d).clamp_(0.0, q)


def _activation_forward_rounded(out: Tensor, x: Tensor, c: Tensor, d: Tensor, q: int) -> None:
    """Write the values."""
    _activation_forward(out, x, c, d, q)
    out.round_().div_(q)


def _activation_backward(
    out: Tensor, grad: Tensor, x: Tensor, c: Tensor, d: Tensor, q: int, scaling: float
) -> tuple[Tensor, Tensor]:
    """Write the gradient of `x`; return the sums from which those of `c` and `d` are computed."""
    if scaling:
        real = torch.empty_like(x)
        _activation_forward(real, x, c, d, q)
        grad = scale_gradient(grad, real, scaling)
    t = (x - (c - d)).mul_(0.5 / d)
    inside = between(grad, t, 0.0, 1.0)
    torch.mul(inside, 0.5 / d, out=out)
    return inside.sum(), inside.dot(t)


def _activation_scalars(
    sums: tuple[Tensor, Tensor], _c: Tensor, d: Tensor, _q: int, _scaling: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `c` and `d`."""
    return _interval_gradients(*sums, d)


class _QuantizeWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, c: Tensor, d: Tensor, gamma: Tensor | None, q: int, scaling: float) -> Tensor:
        ctx.save_for_backward(w, c, d, gamma)
        ctx.constants = q, scaling
        return run_forward(_weight_forward_rounded, w, c, d, gamma, q)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*_weight_gradients(grads[0], ctx.saved_tensors, *ctx.constants), None, None)


class _WeightCodesReal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, c: Tensor, d: Tensor, gamma: Tensor | None, q: int) -> Tensor:
        ctx.save_for_backward(w, c, d, gamma)
        ctx.q = q
        return run_forward(_weight_forward, w, c, d, gamma, q)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*_weight_gradients(grads[0] * ctx.q, ctx.saved_tensors, ctx.q, 0.0), None)


def _weight_gradients(
    grad: Tensor, saved: tuple[Tensor, Tensor, Tensor, Tensor | None], q: int, scaling: float
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    grad_w, (by_c, by_d, *by_gamma) = run_backward(_weight_backward, _weight_scalars, grad, *saved, q, scaling)
    return grad_w, by_c, by_d, by_gamma[0] if by_gamma else None


class _QuantizeActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, c: Tensor, d: Tensor, q: int, scaling: float) -> Tensor:
        ctx.save_for_backward(x, c, d)
        ctx.constants = q, scaling
        return run_forward(_activation_forward_rounded, x, c, d, q)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, by_interval = run_backward(
            _activation_backward, _activation_scalars, grads[0], *ctx.saved_tensors, *ctx.constants
        )
        return grad_x, *by_interval, None, None


def weight_codes_real(w: Tensor, c: Tensor, d: Tensor, gamma: Tensor | None, q: int) -> Tensor:
    """`q * w_hat`: weight codes before rounding, in [-q, q]; arguments as for `quantize_weight`, and its gradients."""
    result: Tensor = _WeightCodesReal.apply(full_precision(w), c, d, gamma, q)
    return result


def quantize_weight(
    w: Tensor, c: Tensor, d: Tensor, gamma: Tensor | None, q: int, *, gradient_scaling: float = 0.0
) -> Tensor:
    """Quantize weights to `-q/q .. q/q` (module docstring, first equation).

    Args:
        w: weights, any shape, floating point.
        c, d: centre and distance of the interval of `|w|`, scalars in the unit of `w`; `d > 0`.
        gamma: exponent of the transformer, a positive scalar; None means 1.
        q: largest code, `2**(bits-1) - 1`.
        gradient_scaling: of the rounding, in steps between codes (`kernels`).

    Returns:
        Values `W / q` with integer `W` in [-q, q], of the shape of `w`, float64 if `w` is and otherwise float32.
    """
    result: Tensor = _QuantizeWeight.apply(full_precision(w), c, d, gamma, q, gradient_scaling)
    return result


def quantize_activation(x: Tensor, c: Tensor, d: Tensor, q: int, *, gradient_scaling: float = 0.0) -> Tensor:
    """Quantize activations to `0/q .. q/q` (module docstring, second equation).

    Args:
        x: activations, any shape, floating point.
        c, d: centre and distance of the interval of `x`, scalars in the unit of `x`; `d > 0`.
        q: largest code, `2**bits - 1`.
        gradient_scaling: of the rounding, in steps between codes (`kernels`).

    Returns:
        Values `X / q` with integer `X` in [0, q], of the shape of `x`, float64 if `x` is and otherwise float32.
    """
    result: Tensor = _QuantizeActivation.apply(full_precision(x), c, d, q, gradient_scaling)
    return result


class _QilInterval(IntervalQuantizer):
    """The parameters of an interval: `log_distance` and `center_ratio`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log_distance = nn.Parameter(torch.zeros((), dtype=torch.float32))
        self.center_ratio = nn.Parameter(torch.ones((), dtype=torch.float32))

    @property
    def distance(self) -> Tensor:
        """`d`, a positive scalar in the unit of the quantized tensor."""
        return self.log_distance.exp()

    @property
    def center(self) -> Tensor:
        """`c`, a scalar in the unit of the quantized tensor."""
        return self._center_and_distance()[0]

    def _center_and_distance(self) -> tuple[Tensor, Tensor]:
        distance = self.distance
        return self.center_ratio * distance, distance

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

    def fault(self) -> str | None:
        """Describe what is invalid about the present parameters; None if nothing is."""
        ratio = float(self.center_ratio.detach())
        if abs(ratio) > _LARGEST_CENTER_RATIO:
            return f"center_ratio is {ratio:.6g}: its thresholds are the same"
        return super().fault()


class QilWeightQuantizer(_QilInterval, WeightQuantizer):
    """QIL weight quantizer: values `W / q` with codes `W` in `-q..q`, `q = 2**(bits-1) - 1`.

    Args:
        bits: 2 to 8.
        train_gamma: whether the exponent of the transformer is a parameter; it is 1 otherwise.
        gradient_scaling: of the rounding, in steps between codes (`kernels`).
        returning: whether weights outside of the interval have a gradient (`returning`).
    """

    def __init__(
        self, bits: int, *, train_gamma: bool = False, gradient_scaling: float = 0.0, returning: bool = False
    ) -> None:
        super().__init__(bits, gradient_scaling=gradient_scaling, returning=returning)
        self.gamma_raw = nn.Parameter(torch.zeros((), dtype=torch.float32)) if train_gamma else None

    @property
    def gamma(self) -> Tensor | None:
        """The exponent, a scalar in (exp(-2), exp(2)); None means 1."""
        if self.gamma_raw is None:
            return None
        return (GAMMA_LOG_BOUND * torch.tanh(self.gamma_raw / GAMMA_LOG_BOUND)).exp()

    def forward(self, weight: Tensor) -> Tensor:
        """Return the quantized weights, in [-1, 1], of the shape of `weight`."""
        scaling, q = self.gradient_scaling, self.largest_code
        values = quantize_weight(weight, *self._center_and_distance(), self.gamma, q, gradient_scaling=scaling)
        return self.let_return(values, weight)

    def codes_real(self, weight: Tensor) -> Tensor:
        """Return the codes before rounding, in [-q, q]; `rint` of them are the codes."""
        codes = weight_codes_real(weight, *self._center_and_distance(), self.gamma, self.largest_code)
        return self.let_return(codes, weight, self.largest_code)

    def set_largest(self, largest: float) -> None:
        """Set the interval to `[0, largest]`."""
        self.set_thresholds(0.0, largest)


class QilActivationQuantizer(_QilInterval, ActivationQuantizer):
    """QIL activation quantizer: values `X / q` with codes `X` in `0..q`, `q = 2**bits - 1`.

    Args:
        bits: 2 to 8.
        signed: whether activations can be negative; the interval then starts symmetric around 0.
        gradient_scaling: of the rounding, in steps between codes (`kernels`).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the quantized activations, in [0, 1], of the shape of `x`."""
        scaling, q = self.gradient_scaling, self.largest_code
        return quantize_activation(x, *self._center_and_distance(), q, gradient_scaling=scaling)

    def set_largest(self, largest: float) -> None:
        """Set the interval to `[0, largest]`, or `[-largest, largest]` where activations can be negative."""
        self.set_thresholds(-largest if self.signed else 0.0, largest)


def _weights(bits: int, config: QuantConfig) -> WeightQuantizer:
    return QilWeightQuantizer(
        bits,
        train_gamma=config.train_gamma,
        gradient_scaling=config.gradient_scaling,
        returning=config.returning_weights,
    )


def _activations(bits: int, signed: bool, config: QuantConfig) -> ActivationQuantizer:
    return QilActivationQuantizer(bits, signed=signed, gradient_scaling=config.gradient_scaling)


QIL = Method(name="qil", weights=_weights, activations=_activations)
