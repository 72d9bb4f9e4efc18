"""Read the inputs and attributes of a node: required ones, those with a default, grids and windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qil_deploy.onnx_io import Array, Node

from . import kernels
from .windows import Window

Inputs = Sequence[Array | None]


def required(inputs: Inputs, index: int) -> Array:
    """Return an input, or raise ValueError if it is left out."""
    value = inputs[index] if index < len(inputs) else None
    if value is None:
        raise ValueError(f"input {index} is missing")
    return value


def optional(inputs: Inputs, index: int) -> Array | None:
    """Return an input, or None if it is left out."""
    return inputs[index] if index < len(inputs) else None


def grid_at(inputs: Inputs, index: int, dtype: np.dtype[Any]) -> kernels.Grid:
    """Return the grid of scale and zero point at inputs `index` and `index` + 1.

    ONNX writes scalars with or without a dimension of one; a zero point that is left out is 0 of type
    `dtype`.
    """
    scale, zero_point = required(inputs, index), optional(inputs, index + 1)
    if zero_point is None:
        zero_point = np.zeros((), dtype)
    unusable = scale[~(np.isfinite(scale) & (scale > 0))]
    if unusable.size:
        raise ValueError(f"its input {index} holds the scale {unusable.flat[0]:g}; scales must be positive and finite")
    return kernels.Grid(*(value.reshape(()) if value.size == 1 else value for value in (scale, zero_point)))


def scalar_grid_at(inputs: Inputs, index: int, dtype: np.dtype[Any]) -> kernels.Grid:
    """Return a grid like `grid_at`, of one scale and one zero point for the whole tensor."""
    grid = grid_at(inputs, index, dtype)
    if grid.scale.ndim or grid.zero_point.ndim:
        raise ValueError(f"inputs {index} and {index + 1} (scale and zero point) must be scalars")
    return grid


def grid_along_axis(node: Node, inputs: Inputs, dtype: np.dtype[Any]) -> kernels.Grid:
    """Shape a per-channel grid at inputs 1 and 2 so that it broadcasts along the node's axis of input 0."""
    grid = grid_at(inputs, 1, dtype)
    shape = [1] * required(inputs, 0).ndim
    if shape:
        shape[integer(node, "axis", 1 if len(shape) > 1 else 0)] = -1
    return kernels.Grid(*(value.reshape(shape) if value.ndim else value for value in (grid.scale, grid.zero_point)))


def integers(node: Node, name: str, default: Sequence[int]) -> list[int]:
    """Return an attribute that is a list of integers."""
    value = node.attributes.get(name, default)
    return [int(entry) for entry in value]  # type: ignore[union-attr]  # a wrong type is a TypeError


def integer(node: Node, name: str, default: int) -> int:
    """Return an attribute that is an integer."""
    return int(node.attributes.get(name, default))  # type: ignore[arg-type]  # a wrong type is a TypeError


def real(node: Node, name: str, default: float) -> float:
    """Return an attribute that is a number."""
    return float(np.float32(node.attributes.get(name, default)))  # type: ignore[arg-type]  # as above


def window_of(node: Node, kernel: Sequence[int]) -> Window:
    """Return the window that a node's attributes describe; `kernel` is its size if they do not give one.

    Raises:
        ValueError: the window is not two-dimensional, or an entry is out of range.
    """
    kernel = integers(node, "kernel_shape", kernel)
    pads = integers(node, "pads", [0] * 4)
    strides = integers(node, "strides", [1, 1])
    dilations = integers(node, "dilations", [1, 1])
    if [len(kernel), len(strides), len(dilations), len(pads)] != [2, 2, 2, 4]:
        raise ValueError(f"kernel_shape {kernel} with pads {pads}: only two-dimensional windows are supported")
    if min(*kernel, *strides, *dilations) < 1 or min(pads) < 0:
        raise ValueError(f"kernel_shape {kernel}, strides {strides}, dilations {dilations}, pads {pads} make no window")
    return Window(
        kernel=(kernel[0], kernel[1]),
        strides=(strides[0], strides[1]),
        dilations=(dilations[0], dilations[1]),
        pads_begin=(pads[0], pads[1]),
        pads_end=(pads[2], pads[3]),
        ceil_mode=bool(integer(node, "ceil_mode", 0)),
    )


def images_of(inputs: Inputs) -> Array:
    """Return input 0, or raise ValueError unless it is [N, C, H, W]."""
    x = required(inputs, 0)
    if x.ndim != 4:
        raise ValueError(f"an input of shape {list(x.shape)} is not [N, C, H, W]")
    return x
