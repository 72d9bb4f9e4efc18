"""Run elementwise kernels over tensors: block by block for the cache, or compiled; and round, straight through.

A kernel writes its result for a flat piece of a tensor into `out`; the kernel of a backward pass also returns the sums
that make up the gradients of its scalars, and a second function derives these from the whole tensor's sums.
Each quantizer's file has its own.

The gradient passes a rounding unchanged, or scaled element by element (EWGS; Lee et al., CVPR 2021). With `r` a code
before rounding, `g` the gradient by `rint(r)` and `delta` the `gradient_scaling` of a `QuantConfig`, that by `r` is

    g * (1 + delta * sign(g) * (r - rint(r)))

Values above their code move down faster than those below, and up more slowly. `delta` counts in steps between
codes, so that it means the same at every bit width: the factor lies within `1 +- delta/2`. The paper's counts in
`[0, 1]` over the whole interval, and is this one times the number of steps (`2q` for weights, as they are signed, and
`q` for activations). Only the rounding is scaled; weights, activations and interval parameters get what follows by the
chain rule, and with `delta = 0` exactly the plain gradient (decision 0044).

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

# Elements that go through all passes of a kernel at once; they and the temporaries fit into a second-level cache.
_BLOCK = 1 << 17

# Widths from 2 to 8 bits of weights and of activations, with and without gamma, signed and unsigned.
_RECOMPILATIONS = 64

between = torch.ops.aten.hardtanh_backward
"""`between(values, x, low, high)`: the values where `low < x < high`, otherwise 0."""

Kernel = Callable[..., Any]
Finish = Callable[..., tuple[Tensor, ...]]


class _Compilation:
    """Whether the kernels of this process are compiled."""

    enabled = False


_VECTOR_BITS = {"DEFAULT": 1, "AVX2": 256, "AVX512": 512}  # by torch's name for the instruction set


@cache
def _compiled(kernel: Kernel) -> Kernel:
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


def run_forward(kernel: Kernel, x: Tensor, *arguments: Any) -> Tensor:
    """Return the result of `kernel` for `x`, in the layout of `x`."""
    out = torch.empty_like(x, memory_format=_layout(x))
    if _Compilation.enabled:
        kernel = _compiled(kernel)
    for out_block, x_block in _blocks(out, x):
        kernel(out_block, x_block, *arguments)
    return out


def run_backward(
    kernel: Kernel, finish: Finish, grad: Tensor, x: Tensor, *arguments: Any
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the gradient that `kernel` writes for `x`, and the result of `finish` for its sums over all of `x`.

    Args:
        kernel: of a backward pass; it returns sums as scalars.
        finish: called with these and the arguments.
        grad: gradient of the loss by the result.
        x: what the quantizer read.
        arguments: of both functions.
    """
    layout = _layout(x)
    if _Compilation.enabled:
        flat, gradients = _compiled(_into_a_new_tensor(kernel, finish))(
            _flat(grad, layout), _flat(x, layout), *arguments
        )
        return _shaped(flat, x, layout), gradients
    out = torch.empty_like(x, memory_format=layout)
    sums = [kernel(*blocks, *arguments) for blocks in _blocks(out, grad, x)]
    return out, finish(sums[0] if len(sums) == 1 else _total(sums), *arguments)


def as_summed(sums: tuple[Tensor, ...], *_: Any) -> tuple[Tensor, ...]:
    """Return the sums of a backward pass unchanged: the `finish` of `run_backward` for sums that are gradients."""
    return sums


def _total(sums: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Add up the sums of blocks."""
    return tuple(torch.stack(values).sum() for values in zip(*sums, strict=True))


@cache
def _into_a_new_tensor(kernel: Kernel, finish: Finish) -> Kernel:
    """Combine both functions of a backward pass into one that returns all gradients.

    The compiler makes one loop of the gradient and its sums. If the gradient is written into an existing tensor, it
    makes two. Work on the sums then costs nothing; run separately, each operation takes some microseconds.
    """

    def returning(grad: Tensor, x: Tensor, *arguments: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        out = torch.empty_like(x)
        return out, finish(kernel(out, grad, x, *arguments), *arguments)

    return returning


def _layout(x: Tensor) -> torch.memory_format:
    channels_last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last and not x.is_contiguous() else torch.contiguous_format


def _flat(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    """Return the values of a tensor in the order of a layout: a view, or a copy if its layout differs."""
    return (tensor.permute(0, 2, 3, 1) if layout is torch.channels_last else tensor).reshape(-1)


def _shaped(flat: Tensor, like: Tensor, layout: torch.memory_format) -> Tensor:
    """Return values in the order of a layout as a tensor of the shape of `like`."""
    if layout is not torch.channels_last:
        return flat.view(like.shape)
    batch, channels, height, width = like.shape
    return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _blocks(out: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield `out` and tensors of its shape as flat views, block by block, in the order of `out` in memory."""
    layout = _layout(out)
    flat = [_flat(tensor, layout) for tensor in (out, *tensors)]
    whole = _Compilation.enabled or out.device.type != "cpu" or out.numel() <= _BLOCK
    return iter([tuple(flat)]) if whole else zip(*(tensor.split(_BLOCK) for tensor in flat), strict=True)


def scale_gradient(grad: Tensor, real: Tensor, gradient_scaling: float) -> Tensor:
    """Return `grad * (1 + gradient_scaling * sign(grad) * (real - rint(real)))` (module docstring).

    Args:
        grad: gradient of the loss by the rounded codes, in any unit.
        real: codes before rounding, of the shape of `grad`, finite.
        gradient_scaling: `delta`.
    """
    return (real - real.round()).mul_(grad.abs()).mul_(gradient_scaling).add_(grad)


class _RoundStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def full_precision(x: Tensor) -> Tensor:
    """Return float32 for half precision, and other tensors as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def round_straight_through(x: Tensor) -> Tensor:
    """Round half to even; the gradient passes unchanged."""
    result: Tensor = _RoundStraightThrough.apply(x)
    return result
