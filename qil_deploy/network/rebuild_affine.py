"""Plain modules for captured calls that scale and shift channels by constants or parameters.

    x * c, x / c, -x         a gain                 x + c, x - c, c - x         a shift, and a gain of -1 in the last
    PReLU of a slope a_c for each channel           x + (a_c - 1) * min(x, 0)

Where no slope is above 1, `(a - 1) * min(x, 0) = max((a - 1) * x, 0)`, which is one layer: its ReLU is taken in.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .captured_call import Call, CallError, Computed, Data, Modules
from .layers import Add, ChannelAffine
from .moves import Branches, Permute, Reshape


def scale(call: Call) -> Modules:
    """ChannelAffine of a gain; nothing for a product with one."""
    name = "self" if isinstance(call.arguments["other"], Data) else "other"
    factor = _constant(call, name, "multiplies by")
    return [] if _is(factor, 1.0) else _affine(call, factor, torch.zeros(1))


def divide(call: Call) -> Modules:
    """ChannelAffine of the reciprocal, of a divisor that is not trained."""
    if call.arguments.get("rounding_mode") is not None or not isinstance(call.arguments["self"], Data):
        raise CallError("divides otherwise than a tensor of the network by a constant")
    divisor = _constant(call, "other", "divides by")
    if isinstance(divisor, nn.Parameter):
        raise CallError("divides by a parameter; multiply by one, whose gradient does not explode")
    if bool((divisor == 0).any()):
        raise CallError("divides by zero")
    return [] if _is(divisor, 1.0) else _affine(call, 1.0 / divisor, torch.zeros(1))


def shift(call: Call) -> Modules:
    """ChannelAffine of a shift; nothing for a sum with zero."""
    return _shifted(call, 1.0)


def subtract(call: Call) -> Modules:
    """ChannelAffine of a shift, with a gain of -1 if the network's tensor is subtracted.

    For two tensors of the network, the sum of one and the other times -1.
    """
    return weighted_sum(call, -float(call.arguments["alpha"])) if len(call.inputs) == 2 else _shifted(call, -1.0)


def weighted_sum(call: Call, factor: float) -> Modules:
    """Return modules that add two tensors of one shape, the second one times a factor."""
    if len(set(call.inputs)) > 1:
        raise CallError(f"adds tensors of different shapes, {list(call.inputs[0])} and {list(call.inputs[1])}")
    if not math.isfinite(factor):
        raise CallError(f"adds a tensor {factor} times")
    if factor == 1:
        return [Add()]
    affine = ChannelAffine(torch.tensor([factor]), torch.zeros(1))
    return [Branches([[], _as_map(call.inputs[1], affine)], Add())]


def _as_map(shape: tuple[int, ...], module: nn.Module) -> Modules:
    """Return a module of maps or rows for a tensor of any shape, its pixels in one row if necessary."""
    _, channels, *sizes = shape
    if len(shape) in (2, 4):
        return [module]
    return [Reshape((channels, 1, math.prod(sizes))), module, Reshape((channels, *sizes))]


def _shifted(call: Call, sign: float) -> Modules:
    """Return modules that compute `self + sign * alpha * other`, one of which is a constant."""
    if call.arguments.get("alpha", 1) != 1:
        raise CallError(f"adds a tensor {call.arguments['alpha']} times")
    takes_away = isinstance(call.arguments["other"], Data)
    added = _constant(call, "self" if takes_away else "other", "adds")
    gain = sign if takes_away else 1.0
    if not takes_away and sign < 0:
        if isinstance(added, nn.Parameter):
            raise CallError("subtracts a parameter; add one")
        added = -added
    return [] if gain == 1 and _is(added, 0.0) else _affine(call, torch.tensor([gain]), added)


def subtract_from(call: Call) -> Modules:
    """ChannelAffine of `other - self`."""
    if call.arguments.get("alpha", 1) != 1:
        raise CallError(f"subtracts a tensor {call.arguments['alpha']} times")
    return _affine(call, torch.tensor([-1.0]), _constant(call, "other", "subtracts from"))


def negate(call: Call) -> Modules:
    """ChannelAffine of -1."""
    return _affine(call, torch.tensor([-1.0]), torch.zeros(1))


def joined(first: ChannelAffine, second: ChannelAffine) -> ChannelAffine | None:
    """Return one affine equivalent to two in sequence; None if it would have to compute with parameters."""
    if first.offset or second.offset:
        return None
    if _is(second.gain, 1.0) and _is(first.shift, 0.0):
        return ChannelAffine(first.gain, second.shift)
    if any(isinstance(values, nn.Parameter) for values in (first.gain, first.shift, second.gain, second.shift)):
        return None
    return ChannelAffine(first.gain * second.gain, first.shift * second.gain + second.shift)


def prelu(call: Call) -> Modules:
    """PReLU of one slope; of one per channel, a sum of the input and a correction below zero."""
    slope = call.parameter("weight")
    if not isinstance(slope, torch.Tensor):
        raise CallError("has no slope")
    if slope.numel() == 1:
        module = nn.PReLU()
        module.weight = slope if isinstance(slope, nn.Parameter) else nn.Parameter(slope, requires_grad=False)
        return [module]
    affine = ChannelAffine(_channels(slope, len(slope)), torch.zeros(1), offset=-1.0)
    below: Modules = [affine, nn.ReLU()] if float(slope.detach().max()) <= 1 else [nn.Hardtanh(-math.inf, 0), affine]
    return _as_map(call.shape, Branches([[], below], Add()))


def _constant(call: Call, name: str, what: str) -> Tensor:
    """Return an argument that is a number, a parameter, a buffer, or a reshaped one of these."""
    value = call.arguments[name]
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise CallError(f"{what} {value}")
        return torch.tensor([float(value)])
    if isinstance(value, Computed) and value.view is not None:
        return value.view
    if isinstance(value, Computed):
        raise CallError(f"{what} what is computed from {', '.join(map(repr, value.names)) or 'nothing'}")
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise CallError(f"{what} something else than numbers")
    return value


def _affine(call: Call, gain: Tensor, added: Tensor) -> Modules:
    """Return scale and shift along one dimension, and moves that make it the dimension of the channels."""
    (source,) = call.inputs
    if call.shape != source:
        raise CallError(f"turns {list(source)} into {list(call.shape)} by constants")
    dims = {dim for values in (gain, added) if (dim := _dimension(values, source)) is not None} or {1}
    if len(dims) > 1:
        raise CallError("scales and shifts along different dimensions")
    dim, rank = dims.pop(), len(source)
    affine = ChannelAffine(_channels(gain, source[dim]), _channels(added, source[dim]))
    if dim == 1 and rank in (2, 4):
        return [affine]
    if rank not in (3, 4):
        raise CallError(f"scales or shifts a tensor of {rank} dimensions by constants")
    front = (0, dim, *(other for other in range(1, rank) if other != dim))
    turned = tuple(source[each] for each in front)
    back = Permute(tuple(front.index(each) for each in range(rank)))
    there: Modules = [] if dim == 1 else [Permute(front)]
    again: Modules = [] if dim == 1 else [back]
    if rank == 4:
        return [*there, affine, *again]
    return [*there, Reshape((turned[1], 1, turned[2])), affine, Reshape(turned[1:]), *again]


def _dimension(values: Tensor, source: tuple[int, ...]) -> int | None:
    """Return the dimension along which constants differ; None for a single one."""
    shape = (1,) * (len(source) - values.ndim) + tuple(values.shape)
    wide = [dim for dim, size in enumerate(shape) if size != 1]
    if len(shape) > len(source) or len(wide) > 1 or wide == [0]:
        raise CallError(
            f"scales or shifts {list(source)} by constants of shape {list(values.shape)}; one for each "
            "channel, or one for all, is lowered"
        )
    return wide[0] if wide else None


def _channels(values: Tensor, channels: int) -> Tensor:
    """Return constants as [channels] or [1]; parameters stay parameters, of the same memory."""
    shape = (channels,) if values.numel() > 1 else (1,)
    if tuple(values.shape) == shape:
        return values
    if isinstance(values, nn.Parameter):
        return nn.Parameter(values.detach().view(shape), requires_grad=values.requires_grad)
    return values.detach().reshape(shape)


def _is(values: Tensor, number: float) -> bool:
    return not isinstance(values, nn.Parameter) and bool((values == number).all())
