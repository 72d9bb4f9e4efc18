"""Lower the `qil` graph to integer operators: QLinearConv, QGemm, QLinearAdd, QLinearGlobalAveragePool, Clip.

    qil.Conv                 QLinearConv(x, x_scale, x_zero_point, w, w_scale, 0, y_scale, y_zero_point, bias)
    qil.Gemm                 QGemm(x, ..., w, ..., bias [, y_scale, y_zero_point]), transB
    qil.Conv without y_scale   floats of exact sums (`dense_floats`)
    qil.Rescale              QLinearAdd(x, x_scale, x_zero_point, C, abs(offset), Z, y_scale, 0)
                             C - Z = -1 for a positive offset, which is then subtracted; +1 for a negative one
    qil.Add                  QLinearAdd
    qil.Mul                  QLinearMul
    qil.Sigmoid              QLinearSigmoid
    qil.LeakyRelu            QLinearLeakyRelu
    qil.GlobalAveragePool    QLinearGlobalAveragePool
    qil.Quantize             QuantizeLinear
    qil.Dequantize           DequantizeLinear
    qil.MeanLogits           Cast(int32) -> ReduceSum over height and width [-> Sub(window * x_zero_point)]
                             -> Cast(float) -> Mul(scale): an exact integer until its one multiplication

uint8 saturates at 0 and 255; where codes end earlier, a Clip follows. Weights stay `qil.Weight` for `store_weights`.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qil_deploy.export.emitter import MICROSOFT_DOMAIN, QIL_DOMAIN, integer, real

from .dense_floats import is_pointwise, pixels_as_rows, rows_as_pixels, sums_as_floats
from .replacement import Replacement
from .rule import Rule, node_rule

_TRANSPOSED = {"alpha": 1.0, "transA": 0, "transB": 1}


def qlinear_rules() -> list[Rule]:
    """Return the rules that lower every `qil` node, except `qil.Weight`."""
    return [node_rule(QIL_DOMAIN, name, lower) for name, lower in _LOWERINGS.items()]


def output_name(node: ir.Node) -> str:
    """Return the name of a node's result: its own, unless a pass has moved the operators after it."""
    return str(node.outputs[0].name)


def scale_and_zero_point(
    new: Replacement, scale: float, zero_point: int, dtype: type[np.integer] = np.uint8
) -> list[ir.Value]:
    """Return the two constants of a per-tensor grid."""
    return [new.constant(np.float32(scale), ""), new.constant(dtype(zero_point), "")]


def grid_of(new: Replacement, node: ir.Node, prefix: str) -> list[ir.Value]:
    """Return the constants of the grid that a node's attributes give under `prefix`."""
    return scale_and_zero_point(new, real(node, f"{prefix}_scale"), integer(node, f"{prefix}_zero_point"))


def weight_of(new: Replacement, node: ir.Node, codes: ir.Value, spread: ir.Value) -> ir.Value:
    """Return the spread int8 weights of a layer, as a `qil.Weight` node."""
    attributes = {"bits": integer(node, "weight_bits")}
    return new.op("Weight", [codes, spread], f"{node.name}_weight", domain=QIL_DOMAIN, attributes=attributes)


def zero_weight_points(new: Replacement, node: ir.Node, w_scale: ir.Value) -> ir.Value:
    """Return the zero points of a layer's weights: int8 zeros, one per output channel."""
    zeros = np.zeros(w_scale.shape.numpy() if w_scale.shape is not None else (), np.int8)
    return new.constant(zeros, f"{node.name}_w_zero_point")


def window_of(node: ir.Node) -> dict[str, object]:
    """Return the attributes of a convolution's window."""
    names = ("strides", "pads", "dilations", "group")
    codes = node.inputs[1]
    if codes is None or codes.shape is None:
        raise ValueError(f"{node.name} has no weight codes")
    return {name: node.attributes[name] for name in names} | {"kernel_shape": list(codes.shape.numpy()[2:])}


def clip(new: Replacement, node: ir.Node, unclipped: ir.Value) -> ir.Value:
    """Clip codes to the node's `low` and `high`; a Clip is written only if uint8 does not saturate there itself."""
    if "high" not in node.attributes:
        return unclipped
    low, high = integer(node, "low"), integer(node, "high")
    if (low, high) == (0, 255):
        return unclipped
    name = output_name(node)
    new.rename(unclipped, f"{name}_unclipped")
    limits = [new.constant(np.uint8(limit), "") for limit in (low, high)]
    return new.op("Clip", [unclipped, *limits], name, node_name=f"{name}_clip")


def offset_operand(new: Replacement, node: ir.Node) -> list[ir.Value]:
    """Return (codes, scale, zero point) of a one-element tensor that represents minus the node's `offset`."""
    offset = real(node, "offset")
    code, zero_point = (0, 1) if offset > 0 else (1, 0)
    if offset == 0:
        code = 0
    codes = new.constant(np.array([code], np.uint8), f"{node.name}_offset")
    return [codes, *scale_and_zero_point(new, abs(offset) or 1.0, zero_point)]


def _quantize(new: Replacement, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    grid = scale_and_zero_point(new, real(node, "scale"), integer(node, "zero_point"))
    return new.op("QuantizeLinear", [inputs[0], *grid], str(node.name))


def dequantize_logits(new: Replacement, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    """Lower qil.Dequantize."""
    return new.op("DequantizeLinear", [inputs[0], *grid_of(new, node, "x")], str(node.name))


def mean_logits(new: Replacement, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    """Lower qil.MeanLogits."""
    name = str(node.name)
    codes = new.op("Cast", inputs, f"{name}_codes", attributes={"to": ir.DataType.INT32})
    axes = new.constant(np.array([2, 3]), f"{name}_axes")
    total = new.op("ReduceSum", [codes, axes], f"{name}_sum", attributes={"keepdims": 1})
    offset = integer(node, "window") * integer(node, "x_zero_point")
    if offset:
        total = new.op("Sub", [total, new.constant(np.int32(offset), "")], f"{name}_accumulator")
    accumulator = new.op("Cast", [total], f"{name}_real", attributes={"to": ir.DataType.FLOAT})
    return new.op("Mul", [accumulator, new.constant(np.float32(real(node, "scale")), "")], name)


def _conv(new: Replacement, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    if "y_scale" not in node.attributes:
        return _linear_of_pixels(new, node, inputs) if is_pointwise(node) else dense_sums(new, node, inputs)
    x, codes, spread, bias, w_scale = inputs
    weight = [weight_of(new, node, codes, spread), w_scale, zero_weight_points(new, node, w_scale)]
    operands = [x, *grid_of(new, node, "x"), *weight, *grid_of(new, node, "y"), bias]
    result = new.op("QLinearConv", operands, output_name(node), attributes=window_of(node), node_name=node.name)
    return clip(new, node, result)


def dense_sums(new: Replacement, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    """Lower a qil.Conv whose sums become floats."""
    x, codes, spread, bias, w_scale = inputs
    zero_point = new.constant(np.uint8(integer(node, "x_zero_point")), "")
    data = [x, weight_of(new, node, codes, spread), zero_point]
    return sums_as_floats(new, node, data, window_of(node), bias, w_scale)


def _linear_of_pixels(new: Replacement, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    x, codes, spread, bias, w_scale = pixels_as_rows(new, node, inputs)
    weight = [weight_of(new, node, codes, spread), w_scale, zero_weight_points(new, node, w_scale)]
    product = new.op(
        "QGemm",
        [x, *grid_of(new, node, "x"), *weight, bias],
        f"{node.name}_row_sums",
        domain=MICROSOFT_DOMAIN,
        attributes=_TRANSPOSED,
        node_name=node.name,
    )
    return rows_as_pixels(new, node, product)


def _gemm(new: Replacement, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    x, codes, spread, bias, w_scale = inputs
    weight = [weight_of(new, node, codes, spread), w_scale, zero_weight_points(new, node, w_scale)]
    output = grid_of(new, node, "y") if "y_scale" in node.attributes else []
    operands = [x, *grid_of(new, node, "x"), *weight, bias, *output]
    result = new.op(
        "QGemm", operands, output_name(node), domain=MICROSOFT_DOMAIN, attributes=_TRANSPOSED, node_name=node.name
    )
    return clip(new, node, result)


def _rescale(new: Replacement, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    operands = [inputs[0], *grid_of(new, node, "x"), *offset_operand(new, node), *grid_of(new, node, "y")]
    return clip(
        new,
        node,
        new.op("QLinearAdd", operands, output_name(node), domain=MICROSOFT_DOMAIN, node_name=node.name),
    )


def _of_two(new: Replacement, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    """Lower qil.Add and qil.Mul."""
    a, b = inputs
    operands = [a, *grid_of(new, node, "a"), b, *grid_of(new, node, "b"), *grid_of(new, node, "y")]
    op_type = f"QLinear{node.op_type}"
    return clip(
        new,
        node,
        new.op(op_type, operands, output_name(node), domain=MICROSOFT_DOMAIN, node_name=node.name),
    )


def table_attributes(node: ir.Node) -> dict[str, object]:
    """Return the attributes of a function of codes."""
    return {"alpha": real(node, "alpha")} if "alpha" in node.attributes else {}


def _table(new: Replacement, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    result = new.op(
        f"QLinear{node.op_type}",
        [inputs[0], *grid_of(new, node, "x"), *grid_of(new, node, "y")],
        output_name(node),
        domain=MICROSOFT_DOMAIN,
        attributes=table_attributes(node),
        node_name=node.name,
    )
    return clip(new, node, result)


def _pool(new: Replacement, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    operands = [inputs[0], *grid_of(new, node, "x"), *grid_of(new, node, "y")]
    attributes = {"channels_last": 0}
    return new.op("QLinearGlobalAveragePool", operands, str(node.name), domain=MICROSOFT_DOMAIN, attributes=attributes)


_LOWERINGS = {
    "Quantize": _quantize,
    "Conv": _conv,
    "Gemm": _gemm,
    "Rescale": _rescale,
    "Add": _of_two,
    "Mul": _of_two,
    "Sigmoid": _table,
    "LeakyRelu": _table,
    "GlobalAveragePool": _pool,
    "MeanLogits": mean_logits,
    "Dequantize": dequantize_logits,
}
