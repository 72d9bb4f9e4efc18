"""Keep OpenVINO from skipping a rounding: a MaxPool over one pixel between a convolution's codes and an addition.

    qil.Conv -> qil.Add, nothing else reading the convolution      qil.Conv -> MaxPool(1x1) -> qil.Add

The pool changes nothing. Without it OpenVINO fuses convolution, quantization, addition and the quantization behind it
into one kernel, which adds the convolution's unrounded result: every seventh code of a residual network's first
addition came out one off. Only files for other runtimes need this (`qdq` with int8 weights; decision 0015).
"""

from __future__ import annotations

import onnx_ir as ir

from .emitter import QIL_DOMAIN, Emitter, copy_node, rewrite


def keep_roundings(model: ir.Model) -> ir.Model:
    """Return the `qil` graph `model` with a pool in front of every addition that is a convolution's only reader."""
    return rewrite(model, {(QIL_DOMAIN, "Add"): _add})


def _add(emitter: Emitter, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    operands = [
        emitter.op("MaxPool", [new], f"{new.name}_rounded", attributes={"kernel_shape": [1, 1]})
        if old is not None and _is_convolution_for(old)
        else new
        for old, new in zip(node.inputs, inputs, strict=True)
    ]
    return copy_node(emitter, node, operands)


def _is_convolution_for(value: ir.Value) -> bool:
    """Whether a convolution makes `value`, and one node reads it."""
    producer = value.producer()
    return producer is not None and producer.op_type == "Conv" and len(value.uses()) == 1
