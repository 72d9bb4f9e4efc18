"""Operators that move or choose values and compute nothing: written down alike for codes and for floats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from torch import nn

from qil_deploy.network import Concat, pair

from .emitter import Emitter


def symmetric_window(kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> dict[str, list[int]]:
    """Return the ONNX attributes of a window that is padded alike on opposite sides."""
    return {"kernel_shape": list(kernel), "strides": list(stride), "pads": [*padding, *padding]}


def max_pool(emitter: Emitter, module: nn.MaxPool2d, sources: list[ir.Value], name: str) -> ir.Value:
    """Emit a MaxPool."""
    window = symmetric_window(pair(module.kernel_size), pair(module.stride), pair(module.padding))
    attributes = window | {"dilations": list(pair(module.dilation)), "ceil_mode": int(module.ceil_mode)}
    return emitter.op("MaxPool", sources, name, attributes=attributes)


def upsample(emitter: Emitter, module: nn.Upsample, sources: list[ir.Value], name: str) -> ir.Value:
    """Emit a Resize that repeats every pixel."""
    factors = module.scale_factor if isinstance(module.scale_factor, tuple) else (module.scale_factor,) * 2
    scales = emitter.constant(np.array([1, 1, *factors], np.float32), f"{name}_factors")
    attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return emitter.op("Resize", [*sources, None, scales], name, attributes=attributes)


def concat(emitter: Emitter, _module: Concat, sources: list[ir.Value], name: str) -> ir.Value:
    """Emit a Concat of channels."""
    return emitter.op("Concat", sources, name, attributes={"axis": 1})


def flatten(emitter: Emitter, module: nn.Flatten, sources: list[ir.Value], name: str) -> ir.Value:
    """Emit a Flatten to one row per image."""
    return emitter.op("Flatten", sources, name, attributes={"axis": module.start_dim})
