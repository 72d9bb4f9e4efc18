"""Plain modules for transposed convolutions: a convolution of blocks, whose channels become the pixels of a block.

Along one axis, with kernel k, stride s and padding p,

    y[o] = sum_i w[o + p - s i] x[i]

Let `o + p = s m + r`, with `r` the place within block `m`, and `t = m - i`:

    y[s m + r - p] = sum_t w[s t + r] x[m - t]          t = 0 .. T - 1,  T = ceil(k / s)

a convolution of T taps, turned around, for every place `r`: `s` times as many channels (channel `c` of the result is
made of channels `c s + r`). Its pads are chosen for the blocks that hold results; what else they hold is cut off.
Where k is no multiple of s, some taps are zero at first and are trained like the others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .captured_call import Call, CallError, Modules
from .layers import Pads
from .moves import Permute, Reshape, Slice
from .rebuild_layers import plain_convolution


def transposed_convolution(call: Call) -> Modules:
    """Conv2d of blocks, moves that rearrange them to pixels, and slices."""
    weight, bias = call.parameter("weight"), call.parameter("bias")
    if weight is None or weight.ndim != 4:
        raise CallError("is no transposed convolution of images [N, C, H, W] or rows [N, C, L]")
    if call.pair("dilation") != (1, 1):
        raise CallError(f"is a transposed convolution with dilation {list(call.pair('dilation'))}")
    stride, groups = call.pair("stride"), int(call.arguments["groups"])
    size, result = call.inputs[0][2:], call.shape[2:]
    taps = [-(-kernel // step) for kernel, step in zip(weight.shape[2:], stride, strict=True)]
    begin, end, starts = [], [], []
    for axis, padding in enumerate(call.pair("padding")):
        first = min(padding // stride[axis], taps[axis] - 1)  # block that holds the first result
        last = (result[axis] - 1 + padding) // stride[axis]
        begin.append(taps[axis] - 1 - first)
        end.append(max(0, last - (size[axis] - 1)))
        starts.append(padding - stride[axis] * first)
    pads: Pads = (begin[0], begin[1], end[0], end[1])
    layer = plain_convolution(_of_blocks(weight, stride, groups), _repeated(bias, stride), pads, groups)
    rows, columns = (size[axis] + begin[axis] + end[axis] - taps[axis] + 1 for axis in (0, 1))
    channels = call.shape[1]
    modules: Modules = [layer]
    if stride != (1, 1):
        modules += [
            Reshape((channels, *stride, rows, columns)),
            Permute((0, 1, 4, 2, 5, 3)),
            Reshape((channels, rows * stride[0], columns * stride[1])),
        ]
    for axis, (blocks, start) in enumerate(zip((rows, columns), starts, strict=True)):
        if (start, result[axis]) != (0, blocks * stride[axis]):
            modules.append(Slice(2 + axis, start, start + result[axis]))
    return modules


def _of_blocks(weight: Tensor, stride: tuple[int, int], groups: int) -> nn.Parameter:
    """Rearrange the weights of a transposed convolution to [C_out * s * s, C_in / groups, T, T]."""
    (rows, columns), (s_y, s_x) = weight.shape[2:], stride
    padded = F.pad(weight.detach(), (0, -columns % s_x, 0, -rows % s_y))
    t_y, t_x = padded.shape[2] // s_y, padded.shape[3] // s_x
    apart = padded.reshape(groups, weight.shape[0] // groups, weight.shape[1], t_y, s_y, t_x, s_x).flip(3, 5)
    blocks = apart.permute(0, 2, 4, 6, 1, 3, 5).reshape(-1, weight.shape[0] // groups, t_y, t_x)
    return nn.Parameter(blocks.contiguous(), requires_grad=weight.requires_grad)


def _repeated(bias: Tensor | None, stride: tuple[int, int]) -> nn.Parameter | None:
    """Repeat a bias for every place of a block."""
    if bias is None:
        return None
    return nn.Parameter(torch.repeat_interleave(bias.detach(), stride[0] * stride[1]), bias.requires_grad)
