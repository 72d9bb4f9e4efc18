"""A gradient for weights outside their interval, which lets them return.

A weight outside its interval has the same code wherever it is. With the methods' own gradients it therefore never
learns again, however much the loss would gain by another code, and nothing but weight decay and a moving interval
brings it back. Each step, even of noise, pushes some weights out: in 2-bit convolutions, whose interval is
little more than its two ends, hardly a weight is left inside after two epochs with a teacher (decision 0050).

With `t = (|w| - l) / (2d)`, `l` the pruning threshold and `2d` the width of the interval (`contract`), and `g` the
gradient of the loss by the value of a weight, that by the weight is

    0 <= t < 1              what the method says
    t < 0, pruned           g / (2d)
    t >= 1, clipped         g / (2d)

and `1 / (2d)` is the mean slope of values over the interval: the gradient passes its ends straight through, as it
passes roundings. Clipped weights may also move outwards. If only inward steps are allowed, weights shrink, the
interval shrinks with them, and every step counts for more. Values, and the gradients of the interval's own parameters,
are those of the method.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .kernels import as_summed, full_precision, run_backward


def _gradient_outside(out: Tensor, grad: Tensor, w: Tensor, c: Tensor, d: Tensor, largest: int) -> tuple[()]:
    """Write the gradient of `w` that the method omits; there are no sums."""
    t = w.abs().sub_(c - d).mul_(0.5 / d)
    outside = (t < 0).logical_or_(t >= 1)
    torch.mul(torch.where(outside, grad, 0.0), 0.5 * largest / d, out=out)
    return ()


class _LetReturn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, w: Tensor, c: Tensor, d: Tensor, largest: int) -> Tensor:
        ctx.save_for_backward(w, c, d)
        ctx.largest = largest
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        added, _ = run_backward(_gradient_outside, as_summed, grads[0], *ctx.saved_tensors, ctx.largest)
        return grads[0], added, None, None, None


def let_weights_return(values: Tensor, w: Tensor, c: Tensor, d: Tensor, largest: int = 1) -> Tensor:
    """Return `values` with a gradient also for weights outside the interval (module docstring).

    Args:
        values: a method's values of the weights, with its gradient.
        w: the weights, of the same shape.
        c, d: centre and distance of the interval of `|w|`, scalars in the unit of `w`; `d > 0`. They get no gradient.
        largest: the value at the end of the interval.
    """
    result: Tensor = _LetReturn.apply(values, full_precision(w), c, d, largest)
    return result
