"""Capture operators that move or choose values and compute nothing, alike for codes and for floats."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from torch import nn

from qil_deploy.network import operator_of

from .emitter import Emitter


def symmetric_window(kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> dict[str, list[int]]:
    """Return the ONNX attributes of a window that is padded alike on opposite sides."""
    return {"kernel_shape": list(kernel), "strides": list(stride), "pads": [*padding, *padding]}


def moves_values(module: nn.Module) -> bool:
    """Tell whether a module has an ONNX form in the table of operators."""
    row = operator_of(module)
    return row is not None and row.onnx is not None


def capture_move(emitter: Emitter, module: nn.Module, sources: list[ir.Value], name: str) -> ir.Value:
    """Emit the ONNX form that the table of operators has for a module."""
    row = operator_of(module)
    if row is None or row.onnx is None:
        raise TypeError(f"{name!r} is a {type(module).__name__}, which moves no values")
    form = row.onnx(module)
    constants = [None if c is None else emitter.constant(c[1], f"{name}_{c[0]}") for c in form.constants]
    return emitter.op(form.name, [*sources, *constants], name, attributes=form.attributes)
