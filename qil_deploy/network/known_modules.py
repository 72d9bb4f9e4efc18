"""What `graph.trace` replaces by plainer modules: functional operations, and modules whose window depends on the image.

Each function here takes a node of a traced graph, on which `graph` has noted the shape of its result
(`node.meta["shape"]`), and returns the modules that, one after the other, do what the node does: none where nothing
known does.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from .layers import Add, Concat, GlobalAveragePool

Modules = list[nn.Module]


def modules_for_function(node: fx.Node) -> Modules:
    """Return the modules that do what a functional node does."""
    function = _FUNCTIONS.get(node.target)
    return [] if function is None else function(node)


def modules_for_module(node: fx.Node, module: nn.Module) -> Modules:
    """Return what stands for a module: plainer ones where there are any (Identity: nothing), or the module itself."""
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return _adaptive_average(node, module.output_size) or [module]
    if isinstance(module, nn.AvgPool2d):
        return [_average(node, module)]
    if isinstance(module, nn.MaxPool2d):
        return _maximum(node, module)
    if isinstance(module, nn.Conv2d) and isinstance(module.padding, str):
        return [_with_fixed_padding(module)]
    return [module]


def _shape(node: fx.Node) -> tuple[int, ...]:
    shape: tuple[int, ...] = node.meta["shape"]
    return shape


def _sources(node: fx.Node) -> list[fx.Node]:
    """Return the tensors that a node reads, each as often as it reads it; sizes are no tensors."""
    sources: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), sources.append)
    return [source for source in sources if "shape" in source.meta]


def _source_shape(node: fx.Node) -> tuple[int, ...]:
    return _shape(_sources(node)[0])


def _argument(node: fx.Node, position: int, name: str, default: object = None) -> Any:  # noqa: ANN401 - as given
    """Return an argument of a call, whether it was given by position or by name; sizes of tensors as numbers."""
    value: Any = node.args[position] if len(node.args) > position else node.kwargs.get(name, default)
    return fx.node.map_arg(value, lambda source: source.meta.get("value", source))


def _relu(_node: fx.Node) -> Modules:
    return [nn.ReLU()]


def _relu6(_node: fx.Node) -> Modules:
    return [nn.ReLU6()]


def _clamp(node: fx.Node, names: tuple[str, str] = ("min", "max")) -> Modules:
    low, high = (_argument(node, position, name) for position, name in enumerate(names, start=1))
    if low is None:
        return []
    return [nn.ReLU()] if low == 0 and high is None else [nn.Hardtanh(low, high)]


def _hardtanh(node: fx.Node) -> Modules:
    return [nn.Hardtanh(_argument(node, 1, "min_val", -1.0), _argument(node, 2, "max_val", 1.0))]


def _add(node: fx.Node) -> Modules:
    plain = len(_sources(node)) == 2 and len({_shape(source) for source in _sources(node)}) == 1
    return [Add()] if plain and "alpha" not in node.kwargs else []


def _concat(node: fx.Node) -> Modules:
    rank = len(_shape(node))
    if _argument(node, 1, "dim", 0) % rank != 1:
        return []
    return [Concat()] if len(_sources(node)) > 1 else [nn.Identity()]


def _adaptive_pool(node: fx.Node) -> Modules:
    return _adaptive_average(node, _argument(node, 1, "output_size"))


def _adaptive_average(node: fx.Node, output_size: int | Sequence[int | None] | None) -> Modules:
    """Windows of one size, if the image divides into them; copies of each pixel, if the result does."""
    wanted = output_size if isinstance(output_size, Sequence) else (output_size, output_size)
    found = _source_shape(node)[2:]
    sizes = [size if want is None else want for want, size in zip(wanted, found, strict=True)]
    if sizes == list(found):
        return [nn.Identity()]
    if sizes == [1, 1]:
        return [GlobalAveragePool()]
    if all(size % want == 0 for want, size in zip(sizes, found, strict=True)):
        return [nn.AvgPool2d((found[0] // sizes[0], found[1] // sizes[1]))]
    if all(want % size == 0 for want, size in zip(sizes, found, strict=True)):
        return [nn.Upsample(scale_factor=(sizes[0] // found[0], sizes[1] // found[1]))]
    return []


def _average(node: fx.Node, pool: nn.AvgPool2d) -> nn.Module:
    """Return a global pooling where the window is the image; otherwise round down where that changes no shape."""
    kernel, stride, padding = (_pair(value) for value in (pool.kernel_size, pool.stride, pool.padding))
    if kernel == _source_shape(node)[2:] and padding == (0, 0) and pool.divisor_override is None:
        return GlobalAveragePool()
    floor = nn.AvgPool2d(kernel, stride, padding, False, pool.count_include_pad, pool.divisor_override)
    rooms = [size + 2 * pad - reach for size, pad, reach in zip(_source_shape(node)[2:], padding, kernel, strict=True)]
    return floor if _rounded_down(rooms, stride) == _shape(node)[2:] else pool


def _maximum(node: fx.Node, pool: nn.MaxPool2d) -> Modules:
    """Return the pooling in a form for which every ONNX operator set counts the same windows.

    In ceil mode torch leaves out a last window that would begin behind the image, and so does ONNX Runtime; the shapes
    of operator sets below 22 count it. Rounding down is the same in such a direction; if the other one does round up,
    each gets a pooling of its own.
    """
    if not pool.ceil_mode or pool.return_indices:
        return [pool]
    kernel, stride, padding, dilation = (
        _pair(value) for value in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    )
    reaches = [(window - 1) * step + 1 for window, step in zip(kernel, dilation, strict=True)]
    rooms = [size + 2 * pad - reach for size, pad, reach in zip(_source_shape(node)[2:], padding, reaches, strict=True)]
    rounded_up = [result > down for result, down in zip(_shape(node)[2:], _rounded_down(rooms, stride), strict=True)]
    if all(up or room % step == 0 for up, room, step in zip(rounded_up, rooms, stride, strict=True)):
        return [pool]
    if not any(rounded_up):
        return [nn.MaxPool2d(kernel, stride, padding, dilation)]
    rows, columns = zip(kernel, stride, padding, dilation, strict=True)
    alone = (1, 1, 0, 1)
    pools: list[nn.Module] = []
    for windows, up in zip(((rows, alone), (alone, columns)), rounded_up, strict=True):
        window, step, pad, spread = zip(*windows, strict=True)
        pools.append(nn.MaxPool2d(window, step, pad, spread, ceil_mode=up))
    return pools


def _rounded_down(rooms: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Count the windows that fit: `rooms` is what is left of image and padding beside the first."""
    return tuple(room // stride + 1 for room, stride in zip(rooms, strides, strict=True))


def _functional_average(node: fx.Node) -> Modules:
    kernel = _argument(node, 1, "kernel_size")
    stride = _argument(node, 2, "stride")
    options = [
        _argument(node, position, name, default)
        for position, (name, default) in enumerate(
            (("padding", 0), ("ceil_mode", False), ("count_include_pad", True), ("divisor_override", None)), start=3
        )
    ]
    return [_average(node, nn.AvgPool2d(kernel, stride or None, *options))]


def _mean(node: fx.Node) -> Modules:
    dimensions = _argument(node, 1, "dim")
    if len(_source_shape(node)) != 4 or not isinstance(dimensions, Sequence):
        return []
    if {value % 4 for value in dimensions} != {2, 3}:
        return []
    flatten: Modules = [] if _argument(node, 2, "keepdim") else [nn.Flatten(1)]
    return [GlobalAveragePool(), *flatten]


def _flatten(node: fx.Node) -> Modules:
    """Flatten, view, reshape: whatever leaves one row per image, or changes nothing."""
    source, result = _source_shape(node), _shape(node)
    if source == result:
        return [nn.Identity()]
    return [nn.Flatten(1)] if len(result) == 2 and source[0] == result[0] else []


def _max_pool(node: fx.Node) -> Modules:
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    options: dict[str, Any] = {
        name: value
        for position, name in enumerate(names, start=1)
        if (value := _argument(node, position, name)) is not None
    }
    return _maximum(node, nn.MaxPool2d(**options))


def _dropout(node: fx.Node) -> Modules:
    share = _argument(node, 1, "p", 0.5)
    return [nn.Dropout(share)] if isinstance(share, float) else []


def _interpolate(node: fx.Node) -> Modules:
    rows, columns = (result / size for result, size in zip(_shape(node)[2:], _source_shape(node)[2:], strict=True))
    return [nn.Upsample(scale_factor=(rows, columns), mode=_argument(node, 3, "mode", "nearest"))]


def _with_fixed_padding(layer: nn.Conv2d) -> nn.Conv2d:
    """Write padding 'same' and 'valid' as numbers where both sides get as much."""
    reach = [(size - 1) * step for size, step in zip(layer.kernel_size, layer.dilation, strict=True)]
    if layer.padding == "valid":
        layer.padding = (0, 0)
    elif not any(total % 2 for total in reach):
        layer.padding = (reach[0] // 2, reach[1] // 2)
    return layer


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


_FUNCTIONS: dict[object, Callable[[fx.Node], Modules]] = {
    F.relu: _relu,
    torch.relu: _relu,
    "relu": _relu,
    "relu_": _relu,
    F.relu6: _relu6,
    F.hardtanh: _hardtanh,
    torch.clamp: _clamp,
    "clamp": _clamp,
    "clamp_": _clamp,
    operator.add: _add,
    operator.iadd: _add,
    torch.add: _add,
    "add": _add,
    "add_": _add,
    torch.cat: _concat,
    torch.concat: _concat,
    F.adaptive_avg_pool2d: _adaptive_pool,
    F.avg_pool2d: _functional_average,
    "mean": _mean,
    torch.mean: _mean,
    torch.flatten: _flatten,
    "flatten": _flatten,
    "view": _flatten,
    "reshape": _flatten,
    torch.reshape: _flatten,
    F.max_pool2d: _max_pool,
    F.dropout: _dropout,
    F.interpolate: _interpolate,
}
