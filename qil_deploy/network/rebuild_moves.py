"""Plain modules for captured calls that move values and compute nothing: joins, reshapes, copies, padding, dropout."""

from __future__ import annotations

import torch
from torch import nn

from .captured_call import Call, CallError, Modules
from .layers import Concat, Permute


def concatenate(call: Call) -> Modules:
    """Concat, of channels."""
    if call.arguments["dim"] % len(call.shape) != 1:
        raise CallError(f"joins along dimension {call.arguments['dim']}, not along the channels")
    if len(call.inputs) != len(call.arguments["tensors"]):
        raise CallError("joins tensors of the network with parameters")
    return [Concat()] if len(call.inputs) > 1 else []


def reshape(call: Call) -> Modules:
    """Flatten to one row per image, or nothing where the shape stays."""
    (source,) = call.inputs
    if source == call.shape:
        return []
    if len(call.shape) == 2 and source[0] == call.shape[0]:
        return [nn.Flatten(1)]
    raise CallError(f"turns {list(source)} into {list(call.shape)}; what is lowered leaves one row per image")


def permute(call: Call) -> Modules:
    """Permute, where images stay apart."""
    rank = len(call.shape)
    dims = [value % rank for value in call.arguments["dims"]]
    return _permutation(dims)


def transpose(call: Call) -> Modules:
    """Permute, of two dimensions."""
    dims = list(range(len(call.shape)))
    a, b = call.arguments["dim0"], call.arguments["dim1"]
    dims[a], dims[b] = dims[b], dims[a]
    return _permutation(dims)


def _permutation(dims: list[int]) -> Modules:
    if dims[0] != 0:
        raise CallError("moves the dimension of the images")
    return [] if dims == sorted(dims) else [Permute(tuple(dims))]


def same(call: Call) -> Modules:
    """Nothing: the result is the input."""
    if call.arguments.get("dtype") not in (None, torch.float32):
        raise CallError(f"casts to {call.arguments['dtype']}")
    if call.inputs[0] != call.shape:
        raise CallError(f"turns {list(call.inputs[0])} into {list(call.shape)}")
    return []


def dropout(call: Call) -> Modules:
    """Dropout of single values."""
    return [nn.Dropout(call.arguments["p"])]


def feature_dropout(call: Call) -> Modules:
    """Dropout of whole channels."""
    return [nn.Dropout2d(call.arguments["p"])]


def upsample(call: Call) -> Modules:
    """Upsample that repeats every pixel a whole number of times."""
    (source,) = call.inputs
    if len(source) != 4:
        raise CallError(f"scales a tensor of {len(source)} dimensions")
    factors = [result / size for result, size in zip(call.shape[2:], source[2:], strict=True)]
    if not all(factor.is_integer() for factor in factors):
        raise CallError("does not repeat each pixel a whole number of times")
    return [nn.Upsample(scale_factor=(factors[0], factors[1]))] if factors != [1.0, 1.0] else []


def interpolate(_call: Call) -> Modules:
    """Nothing that is lowered: values between pixels are computed."""
    raise CallError("does not repeat each pixel a whole number of times")


def pad(call: Call) -> Modules:
    """ZeroPad2d, which the convolutions behind it take in."""
    value = call.arguments.get("value")
    if call.arguments.get("mode", "constant") != "constant" or value not in (None, 0):
        raise CallError("pads with something else than zeros")
    sides = [*(int(size) for size in call.arguments["pad"]), 0, 0, 0, 0]
    if len(call.shape) != 4 or any(sides[4:8]) or min(sides) < 0:
        raise CallError("pads or cuts something else than height and width")
    left, right, top, bottom = sides[:4]
    return [nn.ZeroPad2d((left, right, top, bottom))] if any(sides) else []
