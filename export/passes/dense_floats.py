"""Write a convolution whose exact sums become floats, for an output that is a map.

    qil.Conv, one pixel, stride 1    Transpose -> Reshape (pixels as rows) -> linear layer -> Reshape -> Transpose
    any other qil.Conv               ConvInteger -> Add(bias) -> Cast(float) -> Mul(x_scale * w_scale)

Both compute `float32(sum + bias) * float32(x_scale * w_scale)`. Measured for 64 to 21 channels at 56x56 (one thread),
the first takes 57 us, the second 318 us, and codes by QLinearConv 49 us; for a kernel of 3x3 the second takes 3.4 ms
and QLinearConv 0.23 ms. (QDQ without a last QuantizeLinear is not fused, so there the second is unchanged.)
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qil_deploy.export.emitter import array_of, integer, real

from .replacement import Replacement


def is_pointwise(node: ir.Node) -> bool:
    """Whether a convolution is a linear layer applied to each of several pixels."""
    codes, result = node.inputs[1], node.outputs[0]
    if codes is None or codes.shape is None or result.shape is None:
        raise ValueError(f"{node.name} has no weight codes, or no shape")
    window = {name: list(node.attributes[name].as_ints()) for name in ("strides", "pads")}
    return (
        list(codes.shape.numpy()[2:]) == [1, 1]
        and integer(node, "group") == 1
        and list(result.shape[2:]) != [1, 1]
        and window == {"strides": [1, 1], "pads": [0, 0, 0, 0]}
    )


def pixels_as_rows(new: Replacement, node: ir.Node, inputs: list[ir.Value]) -> list[ir.Value]:
    """Return the inputs of a convolution of single pixels as a linear layer's: data [pixels, C], codes [C', C]."""
    x, codes, *others = inputs
    weights = array_of(codes)
    last = new.op("Transpose", [x], f"{node.name}_channels_last", attributes={"perm": [0, 2, 3, 1]})
    shape = new.constant(np.array([-1, weights.shape[1]]), f"{node.name}_rows_shape")
    rows = new.op("Reshape", [last, shape], f"{node.name}_rows")
    return [rows, new.constant(weights.reshape(weights.shape[:2]), f"{node.name}_codes_of_rows"), *others]


def rows_as_pixels(new: Replacement, node: ir.Node, rows: ir.Value) -> ir.Value:
    """Return the result [pixels, C'] of that linear layer as a map [N, C', H, W]."""
    result = node.outputs[0]
    if result.shape is None:
        raise ValueError(f"{node.name} makes a map of unknown shape")
    channels, height, width = (int(size) for size in result.shape[1:])  # type: ignore[arg-type] # only the batch is free
    shape = new.constant(np.array([-1, height, width, channels]), f"{node.name}_map_shape")
    last = new.op("Reshape", [rows, shape], f"{node.name}_map")
    attributes = {"perm": [0, 3, 1, 2]}
    return new.op("Transpose", [last], str(result.name), attributes=attributes, node_name=f"{node.name}_channels_first")


def sums_as_floats(
    new: Replacement, node: ir.Node, data: list[ir.Value], window: dict[str, object], bias: ir.Value, w_scale: ir.Value
) -> ir.Value:
    """Return the floats of a convolution: `data` are codes, weights and the zero point of the codes."""
    name = str(node.name)
    sums = new.op("ConvInteger", data, f"{name}_sums", attributes=window, node_name=name)
    offsets = new.constant(array_of(bias).reshape(1, -1, 1, 1), f"{name}_offsets")
    accumulator = new.op("Add", [sums, offsets], f"{name}_accumulator")
    floats = new.op("Cast", [accumulator], f"{name}_real", attributes={"to": ir.DataType.FLOAT})
    scale = (np.float32(real(node, "x_scale")) * array_of(w_scale)).astype(np.float32).reshape(1, -1, 1, 1)
    factors = new.constant(scale, f"{name}_scale")
    return new.op("Mul", [floats, factors], str(node.outputs[0].name), node_name=f"{name}_floats")
