"""Lower the `qil` graph to float operators between DequantizeLinear and QuantizeLinear.

ONNX Runtime fuses these, at its default optimization level, to the operators of `lower_to_qlinear`:

    qil.Conv                 Q(Conv(DQ(x), DQ(w), DQ(bias)))         bias: int32 with scale x_scale * w_scale
    qil.Gemm                 [Q](Gemm(DQ(x), DQ(w), DQ(bias)))
    qil.Rescale              Q(Add(DQ(x), DQ(offset)))
    qil.Add                  Q(Add(DQ(a), DQ(b)))
    qil.Mul                  Q(Mul(DQ(a), DQ(b)))
    qil.Sigmoid              Q(Sigmoid(DQ(x)))
    qil.LeakyRelu            Q(LeakyRelu(DQ(x)))
    qil.GlobalAveragePool    Q(GlobalAveragePool(DQ(x)))

Every DQ and Q writes out its zero point: without them a Gemm stays float. There is no Relu: Q saturates at the
code of zero, or a Clip does. Floats not made by a Gemm are lowered as in `lower_to_qlinear`.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qil_deploy.export.emitter import QIL_DOMAIN, integer, real

from .dense_floats import is_pointwise, pixels_as_rows, rows_as_pixels
from .lower_to_qlinear import (
    clip,
    dense_sums,
    dequantize_logits,
    grid_of,
    mean_logits,
    offset_operand,
    output_name,
    scale_and_zero_point,
    table_attributes,
    weight_of,
    window_of,
    zero_weight_points,
)
from .replacement import Replacement
from .rule import Rule, node_rule


def qdq_rules() -> list[Rule]:
    """Return the rules that lower every `qil` node, except `qil.Weight`."""
    return [node_rule(QIL_DOMAIN, name, lower) for name, lower in _LOWERINGS.items()]


def _dequantize(new: Replacement, operands: list[ir.Value], name: str) -> ir.Value:
    return new.op("DequantizeLinear", operands, name)


def _dequantize_per_channel(new: Replacement, operands: list[ir.Value], name: str) -> ir.Value:
    return new.op("DequantizeLinear", operands, name, attributes={"axis": 0})


def _quantize(new: Replacement, node: ir.Node, value: ir.Value, grid: list[ir.Value]) -> ir.Value:
    """Return the codes of `value`, clipped; the float value takes the name `..._real`."""
    name = output_name(node)
    new.rename(value, f"{name}_real")
    codes = new.op("QuantizeLinear", [value, *grid], name, node_name=f"{name}_quantize")
    return clip(new, node, codes)


def _operands(new: Replacement, node: ir.Node, inputs: list[ir.Value]) -> list[ir.Value]:
    """Return dequantized data, weights and bias of a layer."""
    x, codes, spread, bias, w_scale = inputs
    weight = [weight_of(new, node, codes, spread), w_scale, zero_weight_points(new, node, w_scale)]
    if w_scale.const_value is None:
        raise ValueError(f"{node.name} has computed weight scales")
    w_scales = w_scale.const_value.numpy()
    b_scale = new.constant(np.float32(real(node, "x_scale")) * w_scales, f"{node.name}_b_scale")
    b_zero_point = new.constant(np.zeros(w_scales.shape, np.int32), f"{node.name}_b_zero_point")
    return [
        _dequantize(new, [x, *grid_of(new, node, "x")], f"{node.name}_x_real"),
        _dequantize_per_channel(new, weight, f"{node.name}_weight_real"),
        _dequantize_per_channel(new, [bias, b_scale, b_zero_point], f"{node.name}_bias_real"),
    ]


def _conv(new: Replacement, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    if "y_scale" not in node.attributes:
        return _linear_of_pixels(new, node, inputs) if is_pointwise(node) else dense_sums(new, node, inputs)
    result = new.op("Conv", _operands(new, node, inputs), str(node.name), attributes=window_of(node))
    return _quantize(new, node, result, grid_of(new, node, "y"))


def _linear_of_pixels(new: Replacement, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    operands = _operands(new, node, pixels_as_rows(new, node, inputs))
    attributes = {"transB": 1}
    product = new.op("Gemm", operands, f"{node.name}_row_sums", attributes=attributes, node_name=node.name)
    return rows_as_pixels(new, node, product)


def _gemm(new: Replacement, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    result = new.op("Gemm", _operands(new, node, inputs), str(node.name), attributes={"transB": 1})
    if "y_scale" not in node.attributes:
        return result
    return _quantize(new, node, result, grid_of(new, node, "y"))


def _rescale(new: Replacement, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    x = _dequantize(new, [inputs[0], *grid_of(new, node, "x")], f"{node.name}_x_real")
    offset = _dequantize(new, offset_operand(new, node), f"{node.name}_offset_real")
    return _quantize(new, node, new.op("Add", [x, offset], str(node.name)), grid_of(new, node, "y"))


def _of_two(new: Replacement, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    a, b = (
        _dequantize(new, [value, *grid_of(new, node, prefix)], f"{node.name}_{prefix}_real")
        for value, prefix in zip(inputs, ("a", "b"), strict=True)
    )
    return _quantize(new, node, new.op(node.op_type, [a, b], str(node.name)), grid_of(new, node, "y"))


def _table(new: Replacement, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    x = _dequantize(new, [inputs[0], *grid_of(new, node, "x")], f"{node.name}_x_real")
    result = new.op(node.op_type, [x], str(node.name), attributes=table_attributes(node))
    return _quantize(new, node, result, grid_of(new, node, "y"))


def _pool(new: Replacement, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    x = _dequantize(new, [inputs[0], *grid_of(new, node, "x")], f"{node.name}_x_real")
    result = new.op("GlobalAveragePool", [x], str(node.name))
    return _quantize(new, node, result, grid_of(new, node, "y"))


def _quantize_input(new: Replacement, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    grid = scale_and_zero_point(new, real(node, "scale"), integer(node, "zero_point"))
    return new.op("QuantizeLinear", [inputs[0], *grid], str(node.name))


_LOWERINGS = {
    "Quantize": _quantize_input,
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
