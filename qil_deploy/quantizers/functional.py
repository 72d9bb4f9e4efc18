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

`t` is raised to `gamma - 1`, which is infinite at `t = 0` for `gamma < 1`; the derivative below `SMALLEST_T` is
therefore taken at `SMALLEST_T`.

Backward recomputes everything from the quantizer's input, which the layer before it keeps anyway, so quantizing
costs no memory. Without a compiler each kernel goes over its tensors block by block, so that its passes find
them in the cache; compiled, a kernel is one pass (decision 0016).

The arithmetic is float32, or float64 for float64 tensors: half precision, which autocast hands over, is cast first, and
the result stays float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALLEST_T = 1e-4
# Elements that go through all passes of a kernel at once; they and the temporaries fit into a second-level cache.
_BLOCK = 1 << 17

# Widths from 2 to 8 bits of weights and of activations, with and without gamma, signed and unsigned.
_RECOMPILATIONS = 64

_between = torch.ops.aten.hardtanh_backward  # (values, x, low, high): the values where low < x < high, otherwise 0


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


def _weight_backward(out: Tensor, grad: Tensor, w: Tensor, c: Tensor, d: Tensor, gamma: Tensor | None) -> Tensor:
    """Write the gradient of `w`; return the sums that those of `c`, `d` and `gamma` are made of."""
    t = w.abs().sub_(c - d).mul_(0.5 / d)
    inside = _between(grad, t, 0.0, 1.0)
    sign = w.sign()
    if gamma is None:
        torch.mul(inside, 0.5 / d, out=out)
        signed = sign.mul_(inside)
        return torch.stack([signed.sum(), signed.dot(t), torch.zeros_like(c)])
    t_safe = t.clamp(SMALLEST_T, 1.0)
    log = t_safe.log()
    power = (log * gamma).exp_()
    by_gamma = log.mul_(power).mul_(inside).dot(sign)
    inside.mul_(power.div_(t_safe).mul_(gamma))
    torch.mul(inside, 0.5 / d, out=out)
    signed = sign.mul_(inside)
    return torch.stack([signed.sum(), signed.dot(t), by_gamma])


def _activation_forward(out: Tensor, x: Tensor, c: Tensor, d: Tensor, q: int) -> None:
    """Write the values."""
    torch.sub(x, c - d, out=out).mul_(0.5 * q / d).clamp_(0.0, q).round_().div_(q)


def _activation_backward(out: Tensor, grad: Tensor, x: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Write the gradient of `x`; return the sums that those of `c` and `d` are made of."""
    t = (x - (c - d)).mul_(0.5 / d)
    inside = _between(grad, t, 0.0, 1.0)
    torch.mul(inside, 0.5 / d, out=out)
    return torch.stack([inside.sum(), inside.dot(t)])


def _range_forward(out: Tensor, x: Tensor, s: Tensor, low: int, high: int) -> None:
    """Write the values."""
    torch.div(x, s, out=out).round_().clamp_(low, high).mul_(s)


def _range_backward(out: Tensor, grad: Tensor, x: Tensor, s: Tensor, low: int, high: int) -> Tensor:
    """Write the gradient of `x`; return that of `s`."""
    steps = x / s
    code = steps.round()
    limits = low - 0.5, high + 0.5
    out.copy_(_between(grad, code, *limits))
    return code.clamp(low, high).sub_(_between(steps, code, *limits)).dot(grad)


_Kernel = Callable[..., Any]


class _Compilation:
    """Whether the kernels of this process are compiled."""

    enabled = False


_VECTOR_BITS = {"DEFAULT": 1, "AVX2": 256, "AVX512": 512}  # by what torch calls the instructions it runs on


@cache
def _compiled(kernel: _Kernel) -> _Kernel:
    # The key of torch.compile's cache on disk holds its options, but not the vector instructions that it chooses: a
    # kernel made for others would be loaded, and compute something else.
    width = _VECTOR_BITS.get(torch.backends.cpu.get_cpu_capability())
    return torch.compile(kernel, dynamic=True, options={} if width is None else {"cpp.simdlen": width})


def compile_quantizers(enabled: bool = True) -> None:
    """Fuse the elementwise passes over each tensor into one, for this process.

    Uses torch.compile and needs a C++ compiler. Compiled arithmetic may differ in the last bit. That is as good for
    training; what is evaluated and exported is the frozen model, which does not use these functions.
    """
    _Compilation.enabled = enabled
    if enabled:  # a kernel is compiled once for each width, with and without gamma; the limit is 8 by default
        torch._dynamo.config.recompile_limit = max(_RECOMPILATIONS, torch._dynamo.config.recompile_limit)


def _forward(kernel: _Kernel, x: Tensor, *arguments: Any) -> Tensor:
    """Return what `kernel` writes for `x`, in the layout of `x`."""
    out = torch.empty_like(x, memory_format=_layout(x))
    if _Compilation.enabled:
        kernel = _compiled(kernel)
    for out_block, x_block in _blocks(out, x):
        kernel(out_block, x_block, *arguments)
    return out


def _backward(kernel: _Kernel, grad: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Return the gradient that `kernel` writes for `x`, and its sums over all of `x`."""
    out = torch.empty_like(x, memory_format=_layout(x))
    if _Compilation.enabled:
        kernel = _compiled(kernel)
    sums = [kernel(*blocks, *arguments) for blocks in _blocks(out, grad, x)]
    return out, sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)


def _layout(x: Tensor) -> torch.memory_format:
    channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not x.is_contiguous() else torch.contiguous_format


def _blocks(out: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield `out` and tensors of its shape as flat views, block by block, in the order of `out` in memory."""
    layout = _layout(out)
    flat = [
        tensor.permute(0, 2, 3, 1).reshape(-1) if layout is torch.channels_last else tensor.reshape(-1)
        for tensor in (out, *tensors)
    ]
    whole = _Compilation.enabled or out.device.type != "cpu" or out.numel() <= _BLOCK
    return iter([tuple(flat)]) if whole else zip(*(tensor.split(_BLOCK) for tensor in flat), strict=True)


class _QuantizeWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, c: Tensor, d: Tensor, gamma: Tensor | None, q: int) -> Tensor:
        ctx.save_for_backward(w, c, d, gamma)
        return _forward(_weight_forward_rounded, w, c, d, gamma, q)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*_weight_gradients(grads[0], *ctx.saved_tensors), None)


class _WeightCodesReal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, c: Tensor, d: Tensor, gamma: Tensor | None, q: int) -> Tensor:
        ctx.save_for_backward(w, c, d, gamma)
        ctx.q = q
        return _forward(_weight_forward, w, c, d, gamma, q)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*_weight_gradients(grads[0] * ctx.q, *ctx.saved_tensors), None)


def _weight_gradients(
    grad: Tensor, w: Tensor, c: Tensor, d: Tensor, gamma: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    grad_w, sums = _backward(_weight_backward, grad, w, c, d, gamma)
    total, by_t, by_gamma = sums.unbind()
    return grad_w, -0.5 * total / d, (0.5 * total - by_t) / d, None if gamma is None else by_gamma


class _QuantizeActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, c: Tensor, d: Tensor, q: int) -> Tensor:
        ctx.save_for_backward(x, c, d)
        return _forward(_activation_forward, x, c, d, q)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, c, d = ctx.saved_tensors
        grad_x, sums = _backward(_activation_backward, grads[0], x, c, d)
        total, by_t = sums.unbind()
        return grad_x, -0.5 * total / d, (0.5 * total - by_t) / d, None


class _QuantizeRange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, s: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward(x, s)
        ctx.limits = low, high
        return _forward(_range_forward, x, s, low, high)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*_backward(_range_backward, grads[0], *ctx.saved_tensors, *ctx.limits), None, None)


class _RoundStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def _full_precision(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def weight_codes_real(w: Tensor, c: Tensor, d: Tensor, gamma: Tensor | None, q: int) -> Tensor:
    """`q * w_hat`: weight codes before rounding, in [-q, q]; arguments as for `quantize_weight`, and its gradients."""
    result: Tensor = _WeightCodesReal.apply(_full_precision(w), c, d, gamma, q)
    return result


def quantize_weight(w: Tensor, c: Tensor, d: Tensor, gamma: Tensor | None, q: int) -> Tensor:
    """Quantize weights to `-q/q .. q/q` (module docstring, first equation).

    Args:
        w: weights, any shape, floating point.
        c, d: centre and distance of the interval of `|w|`, scalars in the unit of `w`; `d > 0`.
        gamma: exponent of the transformer, a positive scalar; None means 1.
        q: largest code, `2**(bits-1) - 1`.

    Returns:
        Values `W / q` with integer `W` in [-q, q], of the shape of `w`, float64 if `w` is and otherwise float32.
    """
    result: Tensor = _QuantizeWeight.apply(_full_precision(w), c, d, gamma, q)
    return result


def quantize_activation(x: Tensor, c: Tensor, d: Tensor, q: int) -> Tensor:
    """Quantize activations to `0/q .. q/q` (module docstring, second equation).

    Args:
        x: activations, any shape, floating point.
        c, d: centre and distance of the interval of `x`, scalars in the unit of `x`; `d > 0`.
        q: largest code, `2**bits - 1`.

    Returns:
        Values `X / q` with integer `X` in [0, q], of the shape of `x`, float64 if `x` is and otherwise float32.
    """
    result: Tensor = _QuantizeActivation.apply(_full_precision(x), c, d, q)
    return result


def quantize_range(x: Tensor, s: Tensor, low: int, high: int) -> Tensor:
    """Quantize to multiples of a learned step (module docstring, third equation).

    Args:
        x: activations, any shape, floating point.
        s: step, a positive scalar in the unit of `x`.
        low, high: smallest and largest code.

    Returns:
        Values `s * X` with integer `X` in [low, high], of the shape of `x`, float64 if `x` is and otherwise float32.
    """
    result: Tensor = _QuantizeRange.apply(_full_precision(x), s, low, high)
    return result


def round_straight_through(x: Tensor) -> Tensor:
    """Round half to even; the gradient passes unchanged."""
    result: Tensor = _RoundStraightThrough.apply(x)
    return result
