"""ONNX forms of modules that move or choose values: one operator each, alike for codes and for floats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from .layers import pair
from .moves import BilinearUpsample, Concat, ConstantPad, EdgePad, Flip, PaddedMaxPool2d, Permute, Reshape, Slice


@dataclass(frozen=True, kw_only=True)
class OnnxForm:
    """ONNX form of an operator.

    Attributes:
        name: of the operator.
        attributes: of the node.
        constants: inputs after the data: name and values, or None for an input that is left out.
    """

    name: str
    attributes: dict[str, Any]
    constants: Sequence[tuple[str, NDArray[Any]] | None] = ()


def write_max_pool(module: nn.MaxPool2d) -> OnnxForm:
    """MaxPool."""
    rows, columns = pair(module.padding)
    pads = [rows, columns, rows, columns]
    if isinstance(module, PaddedMaxPool2d):
        left, right, top, bottom = module.pads
        pads = [top, left, bottom, right]
    attributes = {
        "kernel_shape": list(pair(module.kernel_size)),
        "strides": list(pair(module.stride)),
        "pads": pads,
        "dilations": list(pair(module.dilation)),
        "ceil_mode": int(module.ceil_mode),
    }
    return OnnxForm(name="MaxPool", attributes=attributes)


def write_upsample(module: nn.Upsample) -> OnnxForm:
    """Resize that repeats pixels."""
    factors = module.scale_factor if isinstance(module.scale_factor, tuple) else (module.scale_factor,) * 2
    attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    scales = np.array([1, 1, *factors], np.float32)
    return OnnxForm(name="Resize", attributes=attributes, constants=(None, ("factors", scales)))


def write_bilinear(module: BilinearUpsample) -> OnnxForm:
    """Resize that interpolates between pixels."""
    attributes = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    scales = np.array([1, 1, *module.factors], np.float32)
    return OnnxForm(name="Resize", attributes=attributes, constants=(None, ("factors", scales)))


def write_edge_pad(module: EdgePad) -> OnnxForm:
    """Pad that repeats pixels."""
    mode = {"reflect": "reflect", "replicate": "edge"}[module.mode]
    return OnnxForm(name="Pad", attributes={"mode": mode}, constants=(_pads(module.pads),))


def write_constant_pad(module: ConstantPad) -> OnnxForm:
    """Pad with the code of a frozen module, or with the value."""
    code = getattr(module, "code", None)
    value = np.float32(module.value) if code is None else np.uint8(int(code))
    return OnnxForm(
        name="Pad", attributes={"mode": "constant"}, constants=(_pads(module.pads), ("value", np.asarray(value)))
    )


def _pads(sides: tuple[int, int, int, int]) -> tuple[str, NDArray[np.int64]]:
    left, right, top, bottom = sides
    return "pads", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64)


def write_concat(module: Concat) -> OnnxForm:
    """Concat."""
    return OnnxForm(name="Concat", attributes={"axis": module.dim})


def write_permute(module: Permute) -> OnnxForm:
    """Transpose."""
    return OnnxForm(name="Transpose", attributes={"perm": list(module.dims)})


def write_flatten(module: nn.Flatten) -> OnnxForm:
    """Flatten."""
    return OnnxForm(name="Flatten", attributes={"axis": module.start_dim})


def write_reshape(module: Reshape) -> OnnxForm:
    """Reshape, whose 0 keeps the number of images."""
    shape = np.array([0, *module.shape], np.int64)
    return OnnxForm(name="Reshape", attributes={}, constants=(("shape", shape),))


def write_slice(module: Slice) -> OnnxForm:
    """Slice."""
    return _slice(module.dim, module.start, module.stop, module.step)


def write_flip(module: Flip) -> OnnxForm:
    """Slice, from the last one back to the first."""
    return _slice(module.dim, -1, np.iinfo(np.int64).min, -1)


def _slice(dim: int, start: int, stop: int, step: int) -> OnnxForm:
    values = {"start": start, "stop": stop, "axis": dim, "step": step}
    constants = [(name, np.array([value], np.int64)) for name, value in values.items()]
    return OnnxForm(name="Slice", attributes={}, constants=constants)
