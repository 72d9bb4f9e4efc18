"""How modules that move or choose values are written in ONNX: one operator each, alike for codes and for floats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from .layers import pair
from .moves import Concat, Permute, Reshape, Slice


@dataclass(frozen=True, kw_only=True)
class OnnxForm:
    """The ONNX operator that an operator is written as.

    Attributes:
        name: of the operator.
        attributes: of the node.
        constants: inputs behind the data: name and values, or None for an input that is left out.
    """

    name: str
    attributes: dict[str, Any]
    constants: Sequence[tuple[str, NDArray[Any]] | None] = ()


def write_max_pool(module: nn.MaxPool2d) -> OnnxForm:
    """MaxPool."""
    padding = pair(module.padding)
    attributes = {
        "kernel_shape": list(pair(module.kernel_size)),
        "strides": list(pair(module.stride)),
        "pads": [*padding, *padding],
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
    """Reshape, whose 0 stands for as many images as there are."""
    shape = np.array([0, *module.shape], np.int64)
    return OnnxForm(name="Reshape", attributes={}, constants=(("shape", shape),))


def write_slice(module: Slice) -> OnnxForm:
    """Slice."""
    values = {"start": module.start, "stop": module.stop, "axis": module.dim, "step": module.step}
    constants = [(name, np.array([value], np.int64)) for name, value in values.items()]
    return OnnxForm(name="Slice", attributes={}, constants=constants)
