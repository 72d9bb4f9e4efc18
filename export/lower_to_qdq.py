"""Lower the `qil` graph to float operators between DequantizeLinear and QuantizeLinear.

ONNX Runtime fuses these, at its default optimization level, to the operators of `lower_to_qlinear`:

    qil.Conv                 Q(Conv(DQ(x), DQ(w), DQ(bias)))         bias: int32 with scale x_scale * w_scale
    qil.Gemm                 [Q](Gemm(DQ(x), DQ(w), DQ(bias)))
    qil.Rescale              Q(Add(DQ(x), DQ(offset)))
    qil.Add                  Q(Add(DQ(a), DQ(b)))
    qil.GlobalAveragePool    Q(GlobalAveragePool(DQ(x)))

Every DQ and Q writes out its zero point: without them a Gemm stays float. There is no Relu: Q saturates at the
code of zero, or a Clip does. Logits that no Gemm makes are lowered as in `lower_to_qlinear`.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .emitter import QIL_DOMAIN, Emitter, Rule, integer, real, rewrite
from .lower_to_qlinear import (
    clip,
    dequantize_logits,
    grid_of,
    mean_logits,
    offset_operand,
    output_name,
    scale_and_zero_point,
    weight_of,
    window_of,
    zero_weight_points,
)


def lower_to_qdq(model: ir.Model) -> ir.Model:
    """Return `model` with every `qil` node lowered, except `qil.Weight`."""
    return rewrite(model, {(QIL_DOMAIN, name): rule for name, rule in _RULES.items()})


def _dequantize(emitter: Emitter, operands: list[ir.Value], name: str) -> ir.Value:
    return emitter.op("DequantizeLinear", operands, name)


def _dequantize_per_channel(emitter: Emitter, operands: list[ir.Value], name: str) -> ir.Value:
    return emitter.op("DequantizeLinear", operands, name, attributes={"axis": 0})


def _quantize(emitter: Emitter, node: ir.Node, value: ir.Value, grid: list[ir.Value]) -> ir.Value:
    """Return the codes of `value`, clipped; the float value takes the name `..._real`."""
    name = output_name(node)
    value.name = f"{name}_real"
    codes = emitter.op("QuantizeLinear", [value, *grid], name, node_name=f"{name}_quantize")
    return clip(emitter, node, codes)


def _operands(emitter: Emitter, node: ir.Node, inputs: list[ir.Value]) -> list[ir.Value]:
    """Return dequantized data, weights and bias of a layer."""
    x, codes, spread, bias, w_scale = inputs
    weight = [weight_of(emitter, node, codes, spread), w_scale, zero_weight_points(emitter, node, w_scale)]
    if w_scale.const_value is None:
        raise ValueError(f"{node.name} has computed weight scales")
    w_scales = w_scale.const_value.numpy()
    b_scale = emitter.constant(np.float32(real(node, "x_scale")) * w_scales, f"{node.name}_b_scale")
    b_zero_point = emitter.constant(np.zeros(w_scales.shape, np.int32), f"{node.name}_b_zero_point")
    return [
        _dequantize(emitter, [x, *grid_of(emitter, node, "x")], f"{node.name}_x_real"),
        _dequantize_per_channel(emitter, weight, f"{node.name}_weight_real"),
        _dequantize_per_channel(emitter, [bias, b_scale, b_zero_point], f"{node.name}_bias_real"),
    ]


def _conv(emitter: Emitter, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    result = emitter.op("Conv", _operands(emitter, node, inputs), str(node.name), attributes=window_of(node))
    return _quantize(emitter, node, result, grid_of(emitter, node, "y"))


def _gemm(emitter: Emitter, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    result = emitter.op("Gemm", _operands(emitter, node, inputs), str(node.name), attributes={"transB": 1})
    if "y_scale" not in node.attributes:
        return result
    return _quantize(emitter, node, result, grid_of(emitter, node, "y"))


def _rescale(emitter: Emitter, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    x = _dequantize(emitter, [inputs[0], *grid_of(emitter, node, "x")], f"{node.name}_x_real")
    offset = _dequantize(emitter, offset_operand(emitter, node), f"{node.name}_offset_real")
    output = scale_and_zero_point(emitter, real(node, "y_scale"), 0)
    return _quantize(emitter, node, emitter.op("Add", [x, offset], str(node.name)), output)


def _add(emitter: Emitter, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    a, b = (
        _dequantize(emitter, [value, *grid_of(emitter, node, prefix)], f"{node.name}_{prefix}_real")
        for value, prefix in zip(inputs, ("a", "b"), strict=True)
    )
    return _quantize(emitter, node, emitter.op("Add", [a, b], str(node.name)), grid_of(emitter, node, "y"))


def _pool(emitter: Emitter, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    x = _dequantize(emitter, [inputs[0], *grid_of(emitter, node, "x")], f"{node.name}_x_real")
    result = emitter.op("GlobalAveragePool", [x], str(node.name))
    return _quantize(emitter, node, result, grid_of(emitter, node, "y"))


def _quantize_input(emitter: Emitter, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    grid = scale_and_zero_point(emitter, real(node, "scale"), integer(node, "zero_point"))
    return emitter.op("QuantizeLinear", [inputs[0], *grid], str(node.name))


_RULES: dict[str, Rule] = {
    "Quantize": _quantize_input,
    "Conv": _conv,
    "Gemm": _gemm,
    "Rescale": _rescale,
    "Add": _add,
    "GlobalAveragePool": _pool,
    "MeanLogits": mean_logits,
    "Dequantize": dequantize_logits,
}
