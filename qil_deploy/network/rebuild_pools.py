"""Plain modules for captured poolings, in forms whose windows every ONNX operator set counts alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from .captured_call import Call, CallError, Modules
from .layers import GlobalAveragePool, pair
from .moves import PaddedMaxPool2d, Reshape
from .rebuild_regions import adaptive_extents, pool_regions, strided_extents
from .rebuild_rows import in_one_row


def adaptive_average_pool(call: Call) -> Modules:
    """Windows of one size if the image divides into them; copies of each pixel if the result is a multiple of it."""
    found, wanted = _map(call), call.shape[2:]
    if wanted == found:
        return []
    if wanted == (1, 1):
        return [_global_pool(call)]
    if all(size % want == 0 for want, size in zip(wanted, found, strict=True)):
        return [nn.AvgPool2d((found[0] // wanted[0], found[1] // wanted[1]))]
    if all(want % size == 0 for want, size in zip(wanted, found, strict=True)):
        return [nn.Upsample(scale_factor=(wanted[0] // found[0], wanted[1] // found[1]))]
    rows, columns = (adaptive_extents(size, want) for size, want in zip(found, wanted, strict=True))
    return pool_regions(rows, columns, call.inputs[0], _average)


def adaptive_max_pool(call: Call) -> Modules:
    """MaxPool2d of each region of windows of one size."""
    found, wanted = _map(call), call.shape[2:]
    rows, columns = (adaptive_extents(size, want) for size, want in zip(found, wanted, strict=True))
    return pool_regions(rows, columns, call.inputs[0], lambda kernel, stride, _: nn.MaxPool2d(kernel, stride))


def _average(kernel: tuple[int, int], stride: tuple[int, int], divisor: int) -> nn.AvgPool2d:
    own = kernel[0] * kernel[1]
    return nn.AvgPool2d(kernel, stride, divisor_override=None if divisor == own else divisor)


def average_pool(call: Call) -> Modules:
    """AvgPool2d; a global pooling if the window is the image; rounded down if that changes no shape."""
    kernel, padding = call.pair("kernel_size"), call.pair("padding")
    stride = call.pair("stride") if call.arguments["stride"] else kernel
    divisor = call.arguments["divisor_override"]
    if kernel == _map(call) and padding == (0, 0) and divisor is None:
        return [_global_pool(call)]
    rooms = [size + 2 * pad - reach for size, pad, reach in zip(_map(call), padding, kernel, strict=True)]
    beyond = call.arguments["ceil_mode"] and _rounded_down(rooms, stride) != call.shape[2:]
    counts_pads = bool(call.arguments["count_include_pad"])
    if beyond or (padding != (0, 0) and not counts_pads and divisor is None):
        rows, columns = (
            strided_extents(*sizes, counts_pads=counts_pads)
            for sizes in zip(_map(call), call.shape[2:], kernel, stride, padding, strict=True)
        )
        return pool_regions(
            rows, columns, call.inputs[0], lambda window, step, count: _average(window, step, divisor or count)
        )
    return [nn.AvgPool2d(kernel, stride, padding, divisor_override=divisor)]


def mean(call: Call) -> Modules:
    """GlobalAveragePool, for a mean over all pixels or a row; over a single direction, a window along all of it."""
    dimensions = call.arguments["dim"]
    rank = len(call.inputs[0])
    if rank == 3 and dimensions and {value % 3 for value in dimensions} == {2}:
        return in_one_row(call.inputs[0], [GlobalAveragePool(call.inputs[0][2])], call.shape)
    over = {value % 4 for value in dimensions} if rank == 4 and dimensions else set()
    if over == {2, 3}:
        flatten: Modules = [] if call.arguments["keepdim"] else [nn.Flatten(1)]
        return [_global_pool(call), *flatten]
    if over not in ({2}, {3}):
        raise CallError("averages something else than height and width")
    (dim,) = over
    window = (_map(call)[0], 1) if dim == 2 else (1, _map(call)[1])
    return [nn.AvgPool2d(window), *([] if call.arguments["keepdim"] else [Reshape(call.shape[1:])])]


def max_pool(call: Call) -> Modules:
    """MaxPool2d, in a form for which every ONNX operator set counts the same windows.

    In ceil mode torch leaves out a last window that would begin beyond the image, and so does ONNX Runtime; the shapes
    of operator sets below 22 count it. Rounding down is the same in such a direction; if the other one does round up,
    each gets a pooling of its own.
    """
    kernel, padding, dilation = (call.pair(name) for name in ("kernel_size", "padding", "dilation"))
    stride, size = call.pair("stride") if call.arguments["stride"] else kernel, _map(call)
    if not call.arguments["ceil_mode"]:
        return [nn.MaxPool2d(kernel, stride, padding, dilation)]
    reaches = [(window - 1) * step + 1 for window, step in zip(kernel, dilation, strict=True)]
    rooms = [length + 2 * pad - reach for length, pad, reach in zip(size, padding, reaches, strict=True)]
    rounded_up = [result > down for result, down in zip(call.shape[2:], _rounded_down(rooms, stride), strict=True)]
    if all(up or room % step == 0 for up, room, step in zip(rounded_up, rooms, stride, strict=True)):
        return [nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=True)]
    if not any(rounded_up):
        return [nn.MaxPool2d(kernel, stride, padding, dilation)]
    rows, columns = zip(kernel, stride, padding, dilation, strict=True)
    alone = (1, 1, 0, 1)
    pools: Modules = []
    for windows, up in zip(((rows, alone), (alone, columns)), rounded_up, strict=True):
        window, step, pad, spread = zip(*windows, strict=True)
        pools.append(nn.MaxPool2d(window, step, pad, spread, ceil_mode=up))
    return pools


def _global_pool(call: Call) -> GlobalAveragePool:
    return GlobalAveragePool(math.prod(_map(call)))


def _map(call: Call) -> tuple[int, ...]:
    """Return height and width of the pooled map."""
    shape = call.inputs[0]
    if len(shape) != 4:
        raise CallError(f"pools a tensor of {len(shape)} dimensions")
    return shape[2:]


def _rounded_down(rooms: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Count the windows that fit: `rooms` is the space that image and padding leave beside the first."""
    return tuple(room // stride + 1 for room, stride in zip(rooms, strides, strict=True))


def padded_pool(pool: nn.Module | None, pads: tuple[int, int, int, int]) -> nn.Module | None:
    """Return a rebuilt maximum pooling padded with minus infinity; None for modules that cannot pad so.

    Args:
        pool: the pooling, or any other module.
        pads: columns on the left and right, rows at the top and bottom.
    """
    if not isinstance(pool, nn.MaxPool2d) or pool.ceil_mode or pair(pool.padding) != (0, 0):
        return None
    kernel, dilation = pair(pool.kernel_size), pair(pool.dilation)
    if max(pads[2:]) >= kernel[0] or max(pads[:2]) >= kernel[1]:
        return None
    padded = PaddedMaxPool2d(kernel, pair(pool.stride), 0, dilation)
    padded.pads = pads
    return padded
