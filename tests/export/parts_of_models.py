"""Parts of exported models that tests look up, to change them or to see what they say."""

from __future__ import annotations

import onnx


def function_of(model: onnx.ModelProto, name: str) -> onnx.FunctionProto:
    """Return the function of a name that a file brings along."""
    found: list[onnx.FunctionProto] = [each for each in model.functions if each.name == name]
    return found[0]


def node_of(model: onnx.ModelProto, operator: str) -> onnx.NodeProto:
    """Return the first node of an operator."""
    found: list[onnx.NodeProto] = [each for each in model.graph.node if each.op_type == operator]
    return found[0]
