"""Functions to look up parts of exported models, and to write files with changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx


def function_of(model: onnx.ModelProto, name: str) -> onnx.FunctionProto:
    """Return the function of a given name in a file."""
    found: list[onnx.FunctionProto] = [each for each in model.functions if each.name == name]
    return found[0]


def node_of(model: onnx.ModelProto, operator: str) -> onnx.NodeProto:
    """Return the first node of an operator."""
    found: list[onnx.NodeProto] = [each for each in model.graph.node if each.op_type == operator]
    return found[0]


def changed_file(content: bytes, change: Callable[[onnx.ModelProto], None], folder: Path) -> Path:
    """Write a model with a change into a folder; return its path."""
    model, path = onnx.load_from_string(content), folder / "model.onnx"
    change(model)
    path.write_bytes(model.SerializeToString())
    return path
