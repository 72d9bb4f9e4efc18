"""Plain modules for captured calls on rows [N, C, L]: those of images [N, C, 1, L], between reshapes.

An operator of rows is the one of images with a height of 1: its windows are one pixel high, move one row at a time,
and pad neither above nor below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor, nn

from .captured_call import Call, Data, Modules
from .moves import Reshape

_Weight = TypeVar("_Weight", bound=Tensor)
_ACROSS: dict[str, float] = {
    "kernel_size": 1,
    "stride": 1,
    "padding": 0,
    "output_padding": 0,
    "dilation": 1,
    "scale_factors": 1.0,
}
"""Sizes that are given for each direction, with what they are in the one that a row does not have."""
_ONLY_OF_IMAGES = {"divisor_override": None}
"""Arguments that the operators of rows do not have."""


def of_rows(rebuild: Callable[[Call], Modules]) -> Callable[[Call], Modules]:
    """Return a function that rebuilds calls on rows and on images, from one for calls on images.

    Args:
        rebuild: of the operator of images.
    """

    def rebuilt(call: Call) -> Modules:
        if len(call.inputs[0]) != 3:
            return rebuild(call)
        return in_one_row(call.inputs[0], rebuild(_as_image(call)), call.shape)

    return rebuilt


def in_one_row(source: tuple[int, ...], modules: Modules, result: tuple[int, ...]) -> Modules:
    """Wrap modules of images for rows: a height of 1 is added before them and removed after.

    Args:
        source: the shape of what is read, [1, C, L].
        modules: of images; if there are none, rows need none either.
        result: the shape of what is returned, [1, C', L'] or another.
    """
    _, channels, length = source
    return [Reshape((channels, 1, length)), *modules, Reshape(result[1:])] if modules else []


def _as_image(call: Call) -> Call:
    """Convert a call on rows to the equivalent call on images."""
    arguments = {name: _with_height(name, value) for name, value in call.arguments.items()}
    return replace(call, arguments=_ONLY_OF_IMAGES | arguments, shape=_with_one_row(call.shape))


def _with_height(name: str, value: Any) -> Any:  # noqa: ANN401 - any argument of an operator
    """Return an argument for rows as one for images."""
    if isinstance(value, Data):
        return Data(_with_one_row(value.shape))
    if name == "weight" and isinstance(value, Tensor) and value.ndim == 3:
        return viewed(value, _with_one_row(value.shape))
    if name == "pad":  # two sides for each dimension, the last one first
        return [*value[:2], 0, 0, *value[2:]]
    if name not in _ACROSS or isinstance(value, str):
        return value
    values = [value] if isinstance(value, int) else value
    return [_ACROSS[name], *values] if values and len(values) == 1 else values  # of two sides there are two


def _with_one_row(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-1], 1, shape[-1])


def viewed(weight: _Weight, shape: tuple[int, ...]) -> _Weight:
    """Return a weight in another shape, trained if the weight is; both share memory."""
    view: Any = weight.detach().view(shape)
    if isinstance(weight, nn.Parameter):
        view = nn.Parameter(view, requires_grad=weight.requires_grad)
    result: _Weight = view
    return result
