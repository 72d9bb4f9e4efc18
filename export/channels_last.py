"""Let linear layers read a feature map with its channels last, as ONNX Runtime's convolutions leave it.

ONNX Runtime computes convolutions and pools with the channels last, and moves them to the front for the Flatten in
front of a linear layer; it does so before the last pool, which then takes ten times as long. Here the linear layer's
weights are arranged for codes in the order [height, width, channel]:

    Flatten(x) -> Gemm(W)        Transpose(x, [0, 2, 3, 1]) -> Flatten -> Gemm(W')

and the Transpose meets that of ONNX Runtime, behind the pool, where both vanish.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .emitter import QIL_DOMAIN, Emitter, array_of, copy_node, rewrite


def channels_last(model: ir.Model) -> tuple[ir.Model, list[str]]:
    """Rewrite every Flatten of a feature map that only `qil.Gemm` reads, and its readers.

    Args:
        model: from `capture`, with the shapes that `capture` gives to tensors; left unchanged.

    Returns:
        The model, and the names of the rewritten nodes.
    """
    maps = {node: shape for node in model.graph if (shape := _flattened_map(node)) is not None}
    rewritten: list[str] = []

    def flatten(emitter: Emitter, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
        if node not in maps:
            return copy_node(emitter, node, inputs)
        rewritten.append(str(node.name))
        name = str(node.name)
        moved = emitter.op("Transpose", inputs, f"{name}_channels_last", attributes={"perm": [0, 2, 3, 1]})
        return emitter.op("Flatten", [moved], name, attributes={"axis": 1})

    def gemm(emitter: Emitter, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
        source = node.inputs[0]
        producer = None if source is None else source.producer()
        if producer is None or producer not in maps:
            return copy_node(emitter, node, inputs)
        rewritten.append(str(node.name))
        codes = array_of(inputs[1])
        arranged = codes.reshape(-1, *maps[producer]).transpose(0, 2, 3, 1).reshape(codes.shape)
        weights = emitter.constant(np.ascontiguousarray(arranged), f"{node.name}_codes_channels_last")
        return copy_node(emitter, node, [inputs[0], weights, *inputs[2:]])

    renamed = {node.outputs[0]: f"{node.outputs[0].name}_rows" for node in maps}
    return rewrite(model, {("", "Flatten"): flatten, (QIL_DOMAIN, "Gemm"): gemm}, renamed), rewritten


def _flattened_map(node: ir.Node) -> tuple[int, int, int] | None:
    """Return [C, H, W] of what a Flatten reads, None where its order makes no difference or others than Gemm see it."""
    source = node.inputs[0] if node.inputs else None
    if (
        (node.domain, node.op_type) != ("", "Flatten")
        or source is None
        or source.shape is None
        or source.shape.rank() != 4
    ):
        return None
    readers = {(reader.domain, reader.op_type) for reader, _ in node.outputs[0].uses()}
    channels, height, width = (int(size) for size in source.shape[1:])  # type: ignore[arg-type]  # only the batch is free
    if readers != {(QIL_DOMAIN, "Gemm")} or channels == 1 or height * width == 1:
        return None
    return channels, height, width
