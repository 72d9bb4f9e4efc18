"""Plain modules for captured calls that move values and compute nothing: joins, reshapes, copies, padding, dropout."""

from __future__ import annotations

import torch
from torch import nn

from .captured_call import Call, CallError, Modules
from .drop_path import DropPath
from .moves import BilinearUpsample, Branches, Concat, ConstantPad, EdgePad, Flip, Permute, Reshape, Slice


def concatenate(call: Call) -> Modules:
    """Concat, within each image."""
    dim = _within_images(call, len(call.shape), "joins")
    if len(call.inputs) != len(call.arguments["tensors"]):
        raise CallError("joins tensors of the network with parameters")
    return [Concat(dim)] if len(call.inputs) > 1 else []


def stack(call: Call) -> Modules:
    """Concat, reshaped: blocks along a dimension, whose number becomes a dimension before it."""
    dim = _within_images(call, len(call.shape), "stacks")
    if len(call.inputs) != len(call.arguments["tensors"]):
        raise CallError("stacks tensors of the network with parameters")
    rank = len(call.inputs[0])
    if dim < rank:
        return [Concat(dim), *_reshaped(call.shape)] if len(call.inputs) > 1 else _reshaped(call.shape)
    # There is no dimension after the last to join along: stack before it, and swap both.
    in_front = (*call.shape[: rank - 1], call.shape[rank], call.shape[rank - 1])
    joined: Modules = [Concat(rank - 1)] if len(call.inputs) > 1 else []
    return [*joined, *_reshaped(in_front), Permute((*range(rank - 1), rank, rank - 1))]


def _within_images(call: Call, rank: int, what: str) -> int:
    """Return the dimension of a call, counted from the front; it must lie within each image."""
    dim: int = call.arguments["dim"] % rank
    if dim == 0:
        raise CallError(f"{what} along the dimension of the images")
    return dim


def reshape(call: Call) -> Modules:
    """Flatten to one row per image, a Reshape to any other shape of each image, or nothing if the shape stays."""
    (source,) = call.inputs
    if source == call.shape:
        return []
    if len(call.shape) < 2 or source[:1] != (1,) or call.shape[:1] != (1,):
        raise CallError(
            f"turns {list(source)} into {list(call.shape)}; only shapes that keep images apart can be lowered"
        )
    return [nn.Flatten(1)] if len(call.shape) == 2 else _reshaped(call.shape)


def _reshaped(shape: tuple[int, ...]) -> Modules:
    return [Reshape(shape[1:])]


def channel_shuffle(call: Call) -> Modules:
    """Channels of each group in turn."""
    _, channels, *rest = call.shape
    groups = call.arguments["groups"]
    apart = (1, groups, channels // groups, *rest)
    return [*_reshaped(apart), Permute((0, 2, 1, *range(3, len(apart)))), *_reshaped(call.shape)]


def pixel_shuffle(call: Call) -> Modules:
    """Channels become blocks of pixels."""
    factor = call.arguments["upscale_factor"]
    _, channels, height, width = _images(call)
    apart = (1, channels // factor**2, factor, factor, height, width)
    return [*_reshaped(apart), Permute((0, 1, 4, 2, 5, 3)), *_reshaped(call.shape)]


def pixel_unshuffle(call: Call) -> Modules:
    """Blocks of pixels become channels."""
    factor = call.arguments["downscale_factor"]
    _, channels, height, width = _images(call)
    apart = (1, channels, height // factor, factor, width // factor, factor)
    return [*_reshaped(apart), Permute((0, 1, 3, 5, 2, 4)), *_reshaped(call.shape)]


def _images(call: Call) -> tuple[int, ...]:
    (source,) = call.inputs
    if len(source) != 4 or source[0] != 1:
        raise CallError(f"rearranges the pixels of a tensor of shape {list(source)}")
    return source


def take_slice(call: Call) -> Modules:
    """Slice, within each image."""
    (source,) = call.inputs
    dim = call.arguments["dim"] % len(source)
    start, stop, step = (call.arguments[name] for name in ("start", "end", "step"))
    if dim == 0:
        if call.arguments["step"] == 1 and source == call.shape:
            return []
        raise CallError("takes some of the images")
    first, last, _ = slice(start, stop).indices(source[dim])
    return _sliced(source, dim, first, last, step)


def narrow(call: Call) -> Modules:
    """Slice of a given length."""
    (source,) = call.inputs
    dim = _within_images(call, len(source), "takes a part")
    start = call.arguments["start"] % source[dim]
    return _sliced(source, dim, start, start + call.arguments["length"])


def select(call: Call) -> Modules:
    """Slice of length one, and the removal of its dimension."""
    (source,) = call.inputs
    dim = _within_images(call, len(source), "takes a part")
    return _selected(call, source, dim, call.arguments["index"] % source[dim])


def unbind(call: Call) -> Modules:
    """One slice for each index along a dimension."""
    (source,) = call.inputs
    return _selected(call, source, _within_images(call, len(source), "splits"), call.result)


def _selected(call: Call, source: tuple[int, ...], dim: int, index: int) -> Modules:
    one = _sliced(source, dim, index, index + 1)
    if len(call.shape) < 2:
        raise CallError("takes a single value of each image")
    return [*one, nn.Flatten(1)] if len(call.shape) == 2 else [*one, *_reshaped(call.shape)]


def piece(call: Call) -> Modules:
    """Slice: one piece of a tensor that is split into several."""
    (source,) = call.inputs
    dim = _within_images(call, len(source), "splits")
    start = _start_of_piece(call, source[dim])
    return _sliced(source, dim, start, start + call.shape[dim])


def _start_of_piece(call: Call, whole: int) -> int:
    """Return the start of a piece, for any way in which the operator gives the sizes of pieces."""
    arguments, index = call.arguments, call.result
    sizes = arguments.get("split_sizes", arguments.get("split_size"))
    if isinstance(sizes, list | tuple):
        return sum(int(size) for size in sizes[:index])
    if isinstance(starts := arguments.get("indices"), list | tuple):
        return int((0, *starts)[index]) % whole
    if "sections" in arguments:  # the first pieces have one more
        size, larger = divmod(whole, int(arguments["sections"]))
        return index * size + min(index, larger)
    return index * int(sizes if sizes is not None else -(-whole // int(arguments["chunks"])))


def _sliced(source: tuple[int, ...], dim: int, start: int, stop: int, step: int = 1) -> Modules:
    if stop <= start:
        raise CallError("takes nothing of a tensor")
    return [] if (start, stop, step) == (0, source[dim], 1) else [Slice(dim, start, stop, step)]


def flip(call: Call) -> Modules:
    """Flip along each of some dimensions."""
    (source,) = call.inputs
    dims = sorted({dim % len(source) for dim in call.arguments["dims"]})
    if 0 in dims:
        raise CallError("turns the order of the images round")
    return [Flip(dim) for dim in dims if source[dim] > 1]


def roll(call: Call) -> Modules:
    """Two slices in swapped order, along each of some dimensions."""
    (source,) = call.inputs
    dims = [dim % len(source) for dim in call.arguments["dims"]]
    if not dims or 0 in dims:
        raise CallError("rolls over several dimensions as one, or over that of the images")
    rolled: Modules = []
    for dim, by in zip(dims, call.arguments["shifts"], strict=True):
        cut = -by % source[dim]
        if cut:
            pieces = [_sliced(source, dim, cut, source[dim]), _sliced(source, dim, 0, cut)]
            rolled.append(Branches(pieces, Concat(dim)))
    return rolled


def repeat(call: Call) -> Modules:
    """Concatenation of copies, along each dimension that is repeated."""
    (source,) = call.inputs
    times = [int(each) for each in call.arguments["repeats"]]
    if len(times) != len(source) or times[0] != 1 or min(times) < 1:
        raise CallError(
            f"repeats {list(source)} {times} times; only repetitions that keep dimensions and images can be lowered"
        )
    return [Branches([[] for _ in range(each)], Concat(dim)) for dim, each in enumerate(times) if each > 1]


def permute(call: Call) -> Modules:
    """Permute that keeps images apart."""
    rank = len(call.shape)
    dims = [value % rank for value in call.arguments["dims"]]
    return _permutation(dims)


def transpose(call: Call) -> Modules:
    """Permute, of two dimensions."""
    dims = list(range(len(call.shape)))
    a, b = (call.arguments.get(f"dim{index}", call.arguments.get(f"axis{index}")) for index in (0, 1))
    dims[a], dims[b] = dims[b], dims[a]
    return _permutation(dims)


def move_dimension(call: Call) -> Modules:
    """Permute, of one dimension."""
    dims = list(range(len(call.shape)))
    source, target = (call.arguments[name] % len(dims) for name in ("source", "destination"))
    dims.insert(target, dims.pop(source))
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


def expand(call: Call) -> Modules:
    """Nothing, or copies of the single pixel that each channel has."""
    source = call.inputs[0]
    if len(source) == 4 and source[2:] == (1, 1) and source[:2] == call.shape[:2] and call.shape != source:
        return [nn.Upsample(scale_factor=(float(call.shape[2]), float(call.shape[3])))]
    return same(call)


def dropout(call: Call) -> Modules:
    """Dropout of single values; of whole images where a `DropPath` calls it."""
    rate = call.arguments["p"]
    return [DropPath(rate) if isinstance(call.module, DropPath) else nn.Dropout(rate)]


def feature_dropout(call: Call) -> Modules:
    """Dropout of whole channels."""
    cls = nn.Dropout1d if len(call.shape) == 3 else nn.Dropout2d
    return [cls(call.arguments["p"])]


def upsample(call: Call) -> Modules:
    """Upsample that repeats every pixel a whole number of times."""
    (source,) = call.inputs
    if len(source) != 4:
        raise CallError(f"scales a tensor of {len(source)} dimensions")
    factors = [result / size for result, size in zip(call.shape[2:], source[2:], strict=True)]
    if not all(factor.is_integer() for factor in factors):
        raise CallError("does not repeat each pixel a whole number of times")
    return [nn.Upsample(scale_factor=(factors[0], factors[1]))] if factors != [1.0, 1.0] else []


def interpolate(call: Call) -> Modules:
    """BilinearUpsample by powers of two; copies in a direction of one pixel, where there is nothing to interpolate."""
    factors = _factors(call)
    source, result = call.inputs[0][2:], call.shape[2:]
    if result == source:
        return []
    if source == (1, 1):
        return [nn.Upsample(scale_factor=(float(factors[0]), float(factors[1])))]
    if call.arguments["align_corners"]:
        raise CallError("upsamples bilinearly with align_corners=True, which no integer kernel rounds alike everywhere")
    if any(factor not in _POWERS_OF_TWO for factor in factors):
        raise CallError(
            f"upsamples maps of {source} to {result} bilinearly; integer kernels round alike where each side "
            "becomes 2, 4, 8, 16 or 32 times as long"
        )
    return [BilinearUpsample(factors)]


_POWERS_OF_TWO = (1, 2, 4, 8, 16, 32)


def _factors(call: Call) -> tuple[int, int]:
    """Return the number of repetitions of each pixel, or 0 if it is not a whole number."""
    (source,) = call.inputs
    if len(source) != 4:
        raise CallError(f"scales a tensor of {len(source)} dimensions")
    rows, columns = (new // old if new % old == 0 else 0 for new, old in zip(call.shape[2:], source[2:], strict=True))
    given = call.arguments.get("scale_factors")
    return (rows, columns) if not given or list(given) == [rows, columns] else (0, 0)


def pad(call: Call) -> Modules:
    """ZeroPad2d, which convolutions absorb, as poolings do minus infinity; or any other padding."""
    mode, value = call.arguments.get("mode", "constant"), call.arguments.get("value")
    if mode != "constant":
        return edge_pad(call)
    sides = _sides(call)
    if min(sides) < 0:
        return _cropped(call, sides)
    if not value:
        return [nn.ZeroPad2d(sides)] if any(sides) else []
    return [ConstantPad(sides, float(value))] if any(sides) else []


def edge_pad(call: Call) -> Modules:
    """EdgePad."""
    name = type(call.module).__name__
    mode = call.arguments.get("mode", "reflect" if name.startswith("Reflection") else "replicate")
    if mode not in ("reflect", "replicate"):
        raise CallError(f"pads in mode {mode!r}")
    sides = _sides(call)
    if min(sides) < 0:
        raise CallError("pads on one side and cuts on another")
    return [EdgePad(sides, mode)] if any(sides) else []


def _sides(call: Call) -> tuple[int, int, int, int]:
    """Return left, right, top and bottom."""
    argument = call.arguments.get("pad", call.arguments.get("padding"))
    left, right, top, bottom, *others = [*(int(size) for size in argument or ()), 0, 0, 0, 0]
    if len(call.shape) != 4 or any(others[:4]):
        raise CallError("pads or cuts something else than height and width")
    return left, right, top, bottom


def _cropped(call: Call, sides: tuple[int, int, int, int]) -> Modules:
    """Return slices for a padding that only crops."""
    if max(sides) > 0:
        raise CallError("pads on one side and cuts on another")
    source = call.inputs[0]
    slices: Modules = []
    for dim, first, last in ((2, -sides[2], -sides[3]), (3, -sides[0], -sides[1])):
        slices += _sliced(source, dim, first, source[dim] - last)
    return slices
