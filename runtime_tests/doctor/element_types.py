"""Element types of a graph's tensors, inferred from its operators, where ONNX Runtime cannot tell them.

It tells types for the main graph that it executes, but none for subgraphs and files that do not load.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qil_deploy.onnx_io import DATA_TYPES, Node, OnnxFile
from qil_deploy.reference import operator_of


def infer_types(file: OnnxFile, known: Mapping[str, str]) -> dict[str, str]:
    """Return the element types of a graph's tensors by numpy's names, as far as its operators determine them.

    Args:
        file: the graph.
        known: types that are known from elsewhere.
    """
    types = {**file.stored_types, **{info.name: info.dtype for info in file.inputs}, **known}
    for node in file.nodes:
        for name, made in zip(node.outputs, _results(node, types), strict=False):
            if name and made:
                types.setdefault(name, made)
    return types


def _results(node: Node, types: Mapping[str, str]) -> list[str]:
    """Return the types of a node's results; '' for an unknown one."""
    if node.op_type == "DynamicQuantizeLinear":
        return ["uint8", "float32", "uint8"]
    if node.op_type == "Constant":
        value = node.attributes.get("value")
        return [str(value.dtype) if isinstance(value, np.ndarray) else ""]
    return [_result(node, types)] * len(node.outputs)


def _result(node: Node, types: Mapping[str, str]) -> str:
    inputs = [types.get(name, "") if name else "" for name in node.inputs]
    match node.op_type:
        case "Cast":
            return _named_type(node.attributes.get("to"))
        case "DequantizeLinear":
            return inputs[1] if len(inputs) > 1 else ""
        case operator if (result := operator_of(node).result) is not None:
            zero_point = "".join(inputs[result.zero_point :][:1])
            without = "float32" if operator == "QGemm" else _named_type(node.attributes.get("output_dtype")) or "uint8"
            return zero_point or without
        case _:
            return operator_of(node).result_type or next((kind for kind in inputs if kind), "")


def _named_type(number: object) -> str:
    return DATA_TYPES[number][0] if isinstance(number, int) and number in DATA_TYPES else ""
