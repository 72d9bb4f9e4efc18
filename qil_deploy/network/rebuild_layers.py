"""Plain modules for captured calls that compute: convolutions, linear layers, BatchNorm, ReLU, additions.

Parameters and buffers are the network's own, not copies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from .captured_call import Call, CallError, Data, Modules
from .layers import PaddedConv2d, Pads, pads_of, pair
from .moves import Permute, Reshape
from .rebuild_affine import shift, weighted_sum
from .rebuild_rows import in_one_row, viewed


def convolution(call: Call) -> Modules:
    """Conv2d; padding 'same' may need more zeros on one side."""
    weight, bias = _parameter(call, "weight"), _parameter(call, "bias")
    if weight is None or weight.ndim != 4:
        raise CallError("is no convolution of images [N, C, H, W] or rows [N, C, L]")
    if call.arguments.get("transposed") or any(call.arguments.get("output_padding", ())):
        raise CallError("is a transposed convolution")
    kernel, stride, dilation = weight.shape[2:], call.pair("stride"), call.pair("dilation")
    padding = call.arguments["padding"]
    if padding == "same":
        reach = [(size - 1) * step for size, step in zip(kernel, dilation, strict=True)]
        pads = (reach[0] // 2, reach[1] // 2, reach[0] - reach[0] // 2, reach[1] - reach[1] // 2)
    else:
        top, left = (0, 0) if padding == "valid" else call.pair("padding")
        pads = (top, left, top, left)
    return [_convolution(weight, bias, pads, stride, dilation, int(call.arguments["groups"]))]


def padded_convolution(layer: nn.Module | None, pads: Sequence[int]) -> nn.Conv2d | None:
    """Return a rebuilt convolution with additional zero padding; None for any other module.

    Args:
        layer: the convolution, or any other module.
        pads: columns on the left and right, rows at the top and bottom.
    """
    if not isinstance(layer, nn.Conv2d):
        return None
    left, right, top, bottom = pads
    above, before, below, behind = pads_of(layer)
    more = (above + top, before + left, below + bottom, behind + right)
    return _convolution(layer.weight, layer.bias, more, pair(layer.stride), pair(layer.dilation), layer.groups)  # type: ignore[arg-type] # parameters


def plain_convolution(weight: nn.Parameter, bias: nn.Parameter | None, pads: Pads, groups: int) -> nn.Conv2d:
    """Return a convolution with these weights, of stride and dilation 1."""
    return _convolution(weight, bias, pads, (1, 1), (1, 1), groups)


def _convolution(
    weight: nn.Parameter,
    bias: nn.Parameter | None,
    pads: Pads,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> nn.Conv2d:
    sizes = weight.shape[1] * groups, weight.shape[0], (weight.shape[2], weight.shape[3]), stride
    layer: nn.Conv2d
    if pads[:2] == pads[2:]:
        layer = nn.Conv2d(*sizes, pads[:2], dilation, groups, bias=False, device="meta")
    else:
        layer = PaddedConv2d(*sizes, 0, dilation, groups, bias=False, device="meta")
        layer.pads = pads
    layer.weight, layer.bias = weight, bias
    return layer


def linear(call: Call) -> Modules:
    """Linear, for one row per image; applied to every pixel or other place of an image, a 1x1 convolution."""
    weight, bias = _parameter(call, "weight"), _parameter(call, "bias")
    if weight is None:
        raise CallError("has no weight")
    (source,) = call.inputs
    if len(source) > 2:
        return _linear_everywhere(call, source, weight, bias)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight, layer.bias = weight, bias  # type: ignore[assignment] # as above
    return [layer]


def _linear_everywhere(call: Call, source: tuple[int, ...], weight: nn.Parameter, bias: nn.Parameter | None) -> Modules:
    """Return a convolution of [N, ..., C] with the channels first, and the moves that bring them there and back."""
    rank, (outputs, inputs) = len(source), weight.shape
    layer = plain_convolution(viewed(weight, (outputs, inputs, 1, 1)), bias, (0, 0, 0, 0), 1)
    front, back = Permute((0, rank - 1, *range(1, rank - 1))), Permute((0, *range(2, rank), 1))
    if rank == 4:
        return [front, layer, back]
    places = math.prod(source[1:-1])
    return [front, Reshape((inputs, 1, places)), layer, Reshape((outputs, *call.shape[1:-1])), back]


def batch_norm(call: Call) -> Modules:
    """BatchNorm2d of images and of rows [N, C, L], BatchNorm1d of [N, C]; it learns as the user's module does."""
    mean, variance = call.parameter("running_mean"), call.parameter("running_var")
    if mean is None or variance is None:
        raise CallError("has no running statistics")
    if call.arguments.get("training"):
        raise CallError("normalizes by the statistics of the batch, in evaluation mode too")
    weight, bias = _parameter(call, "weight"), _parameter(call, "bias")
    rank = len(call.inputs[0])
    if rank not in (2, 3, 4):
        raise CallError(f"normalizes a tensor of {rank} dimensions")
    if (weight is None) != (bias is None):
        raise CallError("has a weight or a bias, but not both")
    own, momentum = call.module, call.arguments["momentum"]
    if isinstance(own, nn.modules.batchnorm._BatchNorm):
        momentum = own.momentum
    cls = nn.BatchNorm1d if rank == 2 else nn.BatchNorm2d
    norm = cls(len(mean), call.arguments["eps"], momentum, affine=weight is not None, device="meta")
    if weight is not None:
        norm.weight, norm.bias = weight, bias  # type: ignore[assignment] # both are there
    norm.running_mean, norm.running_var = mean, variance
    count = getattr(own, "num_batches_tracked", None)
    norm.num_batches_tracked = count if isinstance(count, Tensor) else mean.new_zeros((), dtype=int)  # type: ignore[call-overload] # the stubs know no Python types
    return [norm] if rank != 3 else in_one_row(call.shape, [norm], call.shape)


def relu(call: Call) -> Modules:
    """ReLU."""
    return [nn.ReLU(inplace=_writes(call))]


def clamp(call: Call) -> Modules:
    """ReLU, ReLU6 and clips to any bounds, in any spelling."""
    arguments = call.arguments
    low = arguments.get("min", arguments.get("min_val"))
    high = arguments.get("max", arguments.get("max_val"))
    if isinstance(low, Tensor | Data) or isinstance(high, Tensor | Data):
        raise CallError("clips to bounds that are tensors")
    if low == 0 and high is None:
        return relu(call)
    low, high = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    if not low < high:
        raise CallError(f"clips to {low}..{high}, between which there is nothing")
    if (low, high) == (0, 6):
        return [nn.ReLU6(inplace=_writes(call))]
    return [nn.Hardtanh(low, high, inplace=_writes(call))]


def relu6(call: Call) -> Modules:
    """ReLU6."""
    return [nn.ReLU6(inplace=_writes(call))]


def add(call: Call) -> Modules:
    """Add, of two tensors of one shape; of a tensor and constants, a shift."""
    return weighted_sum(call, float(call.arguments.get("alpha", 1))) if len(call.inputs) == 2 else shift(call)


def _writes(call: Call) -> bool:
    """Whether the user's module overwrites its input; where that would be visible it is undone later."""
    return getattr(call.module, "inplace", False) is True


def _parameter(call: Call, name: str) -> nn.Parameter | None:
    """Return a weight or bias as a parameter for a module to train."""
    tensor = call.parameter(name)
    if tensor is None or isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor, requires_grad=False)
