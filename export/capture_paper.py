"""Capture a prepared model in `paper` placement as a QDQ graph: low-bit layers between float ones.

    interval quantizer          Sub(l) -> QuantizeLinear(step) -> Clip(0, q) -> DequantizeLinear(1/q)
    low-bit layer (-> BatchNorm)   Conv or Gemm(x, DequantizeLinear(W, abs(gain) / q_W), shift)
    float layer                 Conv, Gemm
    anything else               its float operator

`step = 2d / q`, `l = c - d`. `W` are the weight codes, with the sign of their channel's gain, which is BatchNorm's or
the output scale (`qil_deploy.integers.fold`); BatchNorm never touches the weight grid here either. What ONNX Runtime
computes from such a graph is float arithmetic on low-bit values: it repeats the paper's numbers, not their last bits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from qil_deploy.errors import UnsupportedModelError
from qil_deploy.integers import gain_and_shift, integer_codes
from qil_deploy.network import (
    BatchNorm,
    ChannelAffine,
    Norm,
    QuantConv2d,
    QuantLinear,
    module_of,
    norm_behind,
    operator_of,
    pads_of,
    pair,
    row_of,
    weight_to_quantize,
)
from qil_deploy.onnx_io import INPUT_NAME
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import ActivationQuantizer

from .capture import InputKind, as_output, node_names
from .capture_moves import capture_move, moves_values, symmetric_window
from .emitter import QIL_DOMAIN, Emitter
from .layer_codes import LayerCodes
from .outputs import network_outputs


def capture_paper(model: fx.GraphModule, preprocessing: Preprocessing, input_kind: InputKind) -> ir.Model:
    """Return the QDQ graph of a prepared model, its weights as `qil.Weight` nodes.

    Args:
        model: from `qil_deploy.prepare` in `paper` placement, calibrated or trained.
        preprocessing: shape of the image, and its map to the network's input.
        input_kind: `uint8` (raw images, normalised in the graph) or `float`.

    Raises:
        UnsupportedModelError: a module that has no float operator here.
    """
    emitter = Emitter()
    dtype = ir.DataType.UINT8 if input_kind == "uint8" else ir.DataType.FLOAT
    image = ir.Value(name=INPUT_NAME, shape=ir.Shape(["batch", *preprocessing.shape]), type=ir.TensorType(dtype))
    values: dict[fx.Node, ir.Value] = {}
    names = node_names(model)
    norms = _folded_norms(model)
    for node in model.graph.nodes:
        if node.op == "placeholder":
            values[node] = _normalize(emitter, image, preprocessing) if input_kind == "uint8" else image
        elif node.op == "call_module":
            module = module_of(model, node)
            sources = [values[source] for source in node.args if isinstance(source, fx.Node)]
            row = row_of(model, node)
            if (row is not None and (row.only_trains or row.kind == "standalone")) or node in norms.values():
                values[node] = sources[0]
            elif isinstance(module, QuantConv2d | QuantLinear):
                values[node] = _low_bit_layer(emitter, module, _norm_of(model, norms, node), sources, names[node])
            else:
                values[node] = _float_operator(emitter, module, sources, names[node])
    returned = [as_output(values[node], output) for node, output in network_outputs(model)]
    return emitter.model([image], returned, {"": 21, QIL_DOMAIN: 1}, ir_version=10, named=set(values.values()))


def paper_codes(model: fx.GraphModule) -> LayerCodes:
    """Return the weight codes of every low-bit layer, with their signs, by graph node name."""
    names = node_names(model)
    norms = _folded_norms(model)
    return LayerCodes(
        {
            name: partial(_codes, module, _norm_of(model, norms, node))
            for node, name in names.items()
            if isinstance(module := module_of(model, node), QuantConv2d | QuantLinear)
        }
    )


def _folded_norms(model: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """Return the BatchNorm, or scales and shifts, that every low-bit layer absorbs, if any."""
    return {
        node: norm
        for node in model.graph.nodes
        if node.op == "call_module" and isinstance(module_of(model, node), QuantConv2d | QuantLinear)
        if (norm := norm_behind(model, node)) is not None
    }


def _norm_of(model: fx.GraphModule, norms: dict[fx.Node, fx.Node], node: fx.Node) -> Norm | None:
    norm = module_of(model, norms[node]) if node in norms else None
    return norm if isinstance(norm, BatchNorm | ChannelAffine) else None


def _codes(layer: QuantConv2d | QuantLinear, norm: Norm | None) -> NDArray[np.int8]:
    """Return weight codes with the sign of their channel, [C_out, ...]."""
    gain, _ = gain_and_shift(layer, norm)
    signs = gain.sign().to(torch.int8).reshape((-1,) + (1,) * (layer.weight.ndim - 1))
    codes: NDArray[np.int8] = _numpy(integer_codes(layer.weight_quantizer, weight_to_quantize(layer)).mul_(signs))
    return codes


def _scale_and_shift(
    layer: QuantConv2d | QuantLinear, norm: Norm | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the value of one code step, and the shift, [C_out] each."""
    gain, shift = (_numpy(tensor) for tensor in gain_and_shift(layer, norm))
    # A channel without gain has no weights; any scale will do.
    scale = np.where(gain == 0, 1.0, np.abs(gain) / layer.weight_quantizer.largest_code)
    return scale.astype(np.float32), shift.astype(np.float32)


def _low_bit_layer(
    emitter: Emitter,
    layer: QuantConv2d | QuantLinear,
    norm: Norm | None,
    sources: list[ir.Value],
    name: str,
) -> ir.Value:
    codes, (scale, shift) = _codes(layer, norm), _scale_and_shift(layer, norm)
    constants = [
        emitter.constant(codes, f"{name}_codes"),
        emitter.constant(np.ones(len(codes), np.int8), f"{name}_one"),
    ]
    attributes = {"bits": layer.weight_quantizer.bits}
    weight = emitter.op("Weight", constants, f"{name}_weight", domain=QIL_DOMAIN, attributes=attributes)
    grid = [
        emitter.constant(scale, f"{name}_w_scale"),
        emitter.constant(np.zeros(scale.shape, np.int8), f"{name}_w_zero_point"),
    ]
    real = emitter.op("DequantizeLinear", [weight, *grid], f"{name}_weight_real", attributes={"axis": 0})
    return _multiply(emitter, layer, [*sources, real, emitter.constant(shift, f"{name}_bias")], name)


def _float_layer(emitter: Emitter, layer: nn.Conv2d | nn.Linear, sources: list[ir.Value], name: str) -> ir.Value:
    parameters = [emitter.constant(_numpy(layer.weight), f"{name}_weight")]
    if layer.bias is not None:
        parameters.append(emitter.constant(_numpy(layer.bias), f"{name}_bias"))
    return _multiply(emitter, layer, [*sources, *parameters], name)


def _multiply(emitter: Emitter, layer: nn.Conv2d | nn.Linear, operands: list[ir.Value], name: str) -> ir.Value:
    """Emit the Conv or Gemm of a layer."""
    if not isinstance(layer, nn.Conv2d):
        return emitter.op("Gemm", operands, name, attributes={"transB": 1})
    attributes = {
        "kernel_shape": list(layer.kernel_size),
        "strides": list(layer.stride),
        "pads": list(pads_of(layer)),
        "dilations": list(layer.dilation),
        "group": layer.groups,
    }
    return emitter.op("Conv", operands, name, attributes=attributes)


def _normalize(emitter: Emitter, image: ir.Value, preprocessing: Preprocessing) -> ir.Value:
    """Convert uint8 pixels to the network's input (`preprocessing`)."""
    pixels = emitter.op("Cast", [image], "pixels", attributes={"to": ir.DataType.FLOAT})
    shift, factor = (
        values.astype(np.float32)[:, None, None] if preprocessing.is_per_channel else np.float32(values[0])
        for values in (preprocessing.shift, preprocessing.factor)
    )
    names = ("pixels_shift", "pixels_factor") if preprocessing.is_per_channel else ("", "")
    centred = emitter.op("Sub", [pixels, emitter.constant(shift, names[0])], "centred")
    return emitter.op("Mul", [centred, emitter.constant(factor, names[1])], "normalized")


def _interval(emitter: Emitter, module: ActivationQuantizer, sources: list[ir.Value], name: str) -> ir.Value:
    q, (lower, upper) = module.largest_code, module.thresholds
    (x,) = sources
    if lower != 0:
        x = emitter.op("Sub", [x, emitter.constant(np.float32(lower), "")], f"{name}_shifted")
    zero = emitter.constant(np.uint8(0), "")
    step = emitter.constant(np.float32((upper - lower) / q), "")
    codes = emitter.op("QuantizeLinear", [x, step, zero], f"{name}_unclipped")
    codes = emitter.op("Clip", [codes, zero, emitter.constant(np.uint8(q), "")], f"{name}_codes")
    return emitter.op("DequantizeLinear", [codes, emitter.constant(np.float32(1 / q), ""), zero], name)


def _norm(emitter: Emitter, module: Norm, sources: list[ir.Value], name: str) -> ir.Value:
    if isinstance(module, ChannelAffine):
        gain, shift = (_numpy(values) for values in torch.broadcast_tensors(module.gain + module.offset, module.shift))
        if len(gain) == 1:
            scaled = emitter.op("Mul", [*sources, emitter.constant(gain[0], "")], f"{name}_scaled")
            return emitter.op("Add", [scaled, emitter.constant(shift[0], "")], name)
        ones, zeros = np.ones_like(gain), np.zeros_like(gain)
        values = {"scale": gain, "shift": shift, "mean": zeros, "variance": ones}
        constants = [emitter.constant(array, f"{name}_{what}") for what, array in values.items()]
        return emitter.op("BatchNormalization", [*sources, *constants], name, attributes={"epsilon": 0.0})
    if module.running_mean is None or module.running_var is None:
        raise TypeError(f"{name} has no running statistics")
    ones, zeros = np.ones(module.num_features, np.float32), np.zeros(module.num_features, np.float32)
    parameters = {
        "scale": _numpy(module.weight) if module.affine else ones,
        "shift": _numpy(module.bias) if module.affine else zeros,
        "mean": _numpy(module.running_mean),
        "variance": _numpy(module.running_var),
    }
    constants = [emitter.constant(array, f"{name}_{what}") for what, array in parameters.items()]
    return emitter.op("BatchNormalization", [*sources, *constants], name, attributes={"epsilon": module.eps})


def _relu(emitter: Emitter, module: nn.Module, sources: list[ir.Value], name: str) -> ir.Value:
    if not isinstance(module, nn.Hardtanh):
        return emitter.op("Relu", sources, name)
    limits = [emitter.constant(np.float32(limit), "") for limit in (module.min_val, module.max_val)]
    return emitter.op("Clip", [*sources, *limits], name)


def _add(emitter: Emitter, _module: nn.Module, sources: list[ir.Value], name: str) -> ir.Value:
    return emitter.op("Add", sources, name)


def _product(emitter: Emitter, _module: nn.Module, sources: list[ir.Value], name: str) -> ir.Value:
    return emitter.op("Mul", sources, name)


def _table(
    emitter: Emitter, module: nn.Sigmoid | nn.LeakyReLU | nn.PReLU, sources: list[ir.Value], name: str
) -> ir.Value:
    if isinstance(module, nn.Sigmoid):
        return emitter.op("Sigmoid", sources, name)
    slope = float(module.weight.detach()) if isinstance(module, nn.PReLU) else module.negative_slope
    return emitter.op("LeakyRelu", sources, name, attributes={"alpha": slope})


def _hard_sigmoid(emitter: Emitter, _module: nn.Module, sources: list[ir.Value], name: str) -> ir.Value:
    return emitter.op("HardSigmoid", sources, name, attributes={"alpha": 1 / 6, "beta": 0.5})


def _mean(emitter: Emitter, _module: nn.Module, sources: list[ir.Value], name: str) -> ir.Value:
    return emitter.op("GlobalAveragePool", sources, name)


def _average(emitter: Emitter, module: nn.AvgPool2d, sources: list[ir.Value], name: str) -> ir.Value:
    kernel = pair(module.kernel_size)
    window = symmetric_window(kernel, pair(module.stride), pair(module.padding))
    mean = emitter.op("AveragePool", sources, name, attributes=window | {"count_include_pad": 1})
    if not module.divisor_override:
        return mean
    mean.name = f"{name}_mean"
    factor = np.float32(kernel[0] * kernel[1] / module.divisor_override)
    return emitter.op("Mul", [mean, emitter.constant(factor, "")], name, node_name=f"{name}_divisor")


_BY_KIND: dict[str, Callable[..., ir.Value]] = {
    "conv": _float_layer,
    "linear": _float_layer,
    "bn": _norm,
    "relu": _relu,
    "add": _add,
    "product": _product,
    "table": _table,
    "hard sigmoid": _hard_sigmoid,
    "pool": _mean,
    "average": _average,
}


def _float_operator(emitter: Emitter, module: nn.Module, sources: list[ir.Value], name: str) -> ir.Value:
    if isinstance(module, ActivationQuantizer):
        return _interval(emitter, module, sources, name)
    if moves_values(module):
        return capture_move(emitter, module, sources, name)
    row = operator_of(module)
    if row is None or row.kind not in _BY_KIND:
        raise UnsupportedModelError(
            f"{name!r} is a {type(module).__name__}, for which there is no float operator here."
        )
    return _BY_KIND[row.kind](emitter, module, sources, name)


def _numpy(tensor: Tensor) -> NDArray[Any]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())
