"""Capture a frozen model as an ONNX graph in the `qil` domain, one node for one module.

The frozen `torch.fx` graph is a list of integer operations already (decision 0010); nothing is traced and nothing
rounded here. Scalars become attributes, tensors inputs:

    qil.Quantize(x)                               float images to uint8 codes: scale, zero_point; images with statistics
                                                  per channel become pixels before, by Mul and Add
    qil.Conv(x, codes, spread, bias, w_scale)     x_scale, x_zero_point, y_scale, y_zero_point, low, high, weight_bits,
    qil.Gemm(x, codes, spread, bias, w_scale)     (Conv only) strides, pads, dilations, group; without y_scale: floats
    qil.Rescale(x)                                x_scale, x_zero_point, offset, y_scale, y_zero_point, low, high
    qil.Add(a, b)                                 a_scale, a_zero_point, b_scale, b_zero_point, y_scale, y_zero_point,
                                                  low, high
    qil.Mul(a, b)                                 as qil.Add
    qil.Sigmoid(x), qil.LeakyRelu(x)              x_scale, x_zero_point, y_scale, y_zero_point, low, high,
                                                  (LeakyRelu only) alpha
    qil.GlobalAveragePool(x)                      x_scale, x_zero_point, y_scale, y_zero_point
    qil.MeanLogits(x)                             scale, x_zero_point, window
    qil.Dequantize(x)                             x_scale, x_zero_point

What is kept in float becomes operators of ONNX at once (`capture_float`).
Rescales carry input scales that make `x_scale / y_scale` the snapped ratio `p/q`; `offset` is `k/q * y_scale`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from qil_deploy.errors import UnsupportedModelError
from qil_deploy.integers import (
    FrozenAdd,
    FrozenDequantize,
    FrozenFloat,
    FrozenGlobalAveragePool,
    FrozenInput,
    FrozenLayer,
    FrozenMeanLogits,
    FrozenProduct,
    FrozenRescale,
    FrozenTable,
    Grid,
)
from qil_deploy.network import QuantConv2d, outputs_of, pads_of, shape_of
from qil_deploy.onnx_io import INPUT_NAME, NetworkOutput
from qil_deploy.preprocessing import Preprocessing

from .capture_float import MIN_FLOAT_OPSET, capture_float, trace_parts
from .capture_moves import capture_move, moves_values
from .emitter import QIL_DOMAIN, Emitter, free_name
from .outputs import network_outputs

_LEAST_SCALE = 2.0**-120
InputKind = Literal["uint8", "float"]


def capture(
    model: fx.GraphModule, preprocessing: Preprocessing, input_kind: InputKind, float_opset: int = MIN_FLOAT_OPSET
) -> ir.Model:
    """Return the `qil` graph of a frozen model.

    Args:
        model: from `qil_deploy.freeze`.
        preprocessing: gives the shape of the input.
        input_kind: `uint8` (raw images) or `float` (normalised images, quantized in the graph).
        float_opset: operator set of what is kept in float.

    Raises:
        UnsupportedModelError: a module that is not of a frozen model, or something kept in float that PyTorch cannot
            write as ONNX.
    """
    _require_frozen(model)
    emitter = Emitter()
    dtype = ir.DataType.UINT8 if input_kind == "uint8" else ir.DataType.FLOAT
    shape = ir.Shape(["batch", *preprocessing.shape])
    image = ir.Value(name=INPUT_NAME, shape=shape, type=ir.TensorType(dtype))
    values: dict[fx.Node, ir.Value] = {}
    names = node_names(model)
    traced = trace_parts(model, float_opset)
    returned = network_outputs(model)
    unwritten = set(outputs_of(model.graph)) - {node for node, _ in returned}  # floats of codes that are returned
    for node in model.graph.nodes:
        if node.op == "placeholder":
            values[node] = image
        elif node.op == "call_module" and node not in unwritten:
            module = model.get_submodule(str(node.target))
            # Not all_input_nodes: a tensor may be added to itself.
            sources = [values[source] for source in node.args if isinstance(source, fx.Node)]
            if isinstance(module, FrozenInput) and input_kind == "uint8":
                values[node] = sources[0]
            else:
                if isinstance(module, FrozenFloat):
                    values[node] = capture_float(emitter, module, sources, names[node], traced[node])
                else:
                    values[node] = _capture_module(emitter, module, sources, names[node])
                values[node].shape = ir.Shape(["batch", *shape_of(node)[1:]])
    outputs = [as_output(values[node], output) for node, output in returned]
    return emitter.model([image], outputs, {"": 21, QIL_DOMAIN: 1}, ir_version=10, named=set(values.values()))


def as_output(value: ir.Value, output: NetworkOutput) -> ir.Value:
    """Make a value an output of the graph, with its name."""
    value.name, value.shape = output.name, ir.Shape(["batch", *output.shape])
    value.type = ir.TensorType(ir.DataType.UINT8 if output.kind == "codes" else ir.DataType.FLOAT)
    return value


def node_names(model: fx.GraphModule) -> dict[fx.Node, str]:
    """Return a unique name in the exported graph for every module call.

    It is the module's own, unless that is called repeatedly. A number follows a name that another call has, or that is
    the name of the graph's input or an output.
    """
    calls = [node for node in model.graph.nodes if node.op == "call_module"]
    counts = Counter(node.target for node in calls)
    outputs = {node: output.name for node, output in network_outputs(model)}
    reserved, taken = {INPUT_NAME, *outputs.values()}, set[str]()
    names: dict[fx.Node, str] = {}
    for node in sorted(calls, key=lambda node: counts[node.target] > 1):
        own = str(node.target) if counts[node.target] == 1 else node.name
        # An output's result has the output's name in any case; the name of the call itself does not matter.
        names[node] = free_name(own, taken if node in outputs else taken | reserved)
        taken.add(names[node])
    return {node: names[node] for node in calls}


def tensor_names(model: fx.GraphModule) -> dict[fx.Node, str]:
    """Return the name in the exported graph of every module call's result."""
    return node_names(model) | {node: output.name for node, output in network_outputs(model)}


def _require_frozen(model: fx.GraphModule) -> None:
    """Require every module that a model calls to be a frozen one."""
    for node in model.graph.nodes:
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if module is not None and not (isinstance(module, FrozenFloat) or _function_of(module)):
            raise UnsupportedModelError(
                f"{node.target!r} is a {type(module).__name__}, which is no part of a frozen model; freeze the model "
                "first."
            )


def _function_of(module: nn.Module) -> Callable[..., ir.Value] | None:
    """Return the function that writes a module; None for one that is not frozen, or is kept in float."""
    return _CAPTURES.get(type(module), capture_move if moves_values(module) else None)


def _capture_module(emitter: Emitter, module: nn.Module, sources: list[ir.Value], name: str) -> ir.Value:
    function = _function_of(module)
    if function is None:
        raise TypeError(f"{name!r} is a {type(module).__name__}")
    return function(emitter, module, sources, name)


def _input(emitter: Emitter, module: FrozenInput, sources: list[ir.Value], name: str) -> ir.Value:
    attributes = {"scale": float(module.scale), "zero_point": int(module.zero_point)}
    if module.shift is not None and module.unit is not None:
        centred = emitter.op(
            "Mul", [*sources, emitter.constant(_numpy(module.unit), f"{name}_unit")], f"{name}_centred"
        )
        pixels = emitter.op("Add", [centred, emitter.constant(_numpy(module.shift), f"{name}_shift")], f"{name}_pixels")
        sources, attributes = [pixels], {"scale": 1.0, "zero_point": 0}
    return emitter.op("Quantize", sources, name, domain=QIL_DOMAIN, attributes=attributes)


def _layer(emitter: Emitter, module: FrozenLayer, sources: list[ir.Value], name: str) -> ir.Value:
    attributes: dict[str, Any] = _grid("x", module.x) | {
        "x_high": int(module.x.high),
        "weight_bits": module.layer.weight_quantizer.bits,
    }
    if module.y is not None:
        attributes |= _grid("y", module.y) | _limits(module.y) | {"y_scale": float(module.y_step)}
    layer = module.layer
    if isinstance(layer, QuantConv2d):
        attributes |= {
            "strides": [int(stride) for stride in layer.stride],
            "pads": [int(size) for size in pads_of(layer)],
            "dilations": [int(dilation) for dilation in layer.dilation],
            "group": layer.groups,
        }
    tensors = {
        "codes": module.weight_codes,
        "spread": module.spread,
        "bias": module.bias,
        "w_scale": module.w_scale,
    }
    constants = [emitter.constant(_numpy(tensor), f"{name}_{what}") for what, tensor in tensors.items()]
    kind = "Conv" if isinstance(layer, QuantConv2d) else "Gemm"
    return emitter.op(kind, [*sources, *constants], name, domain=QIL_DOMAIN, attributes=attributes)


def _rescale(emitter: Emitter, module: FrozenRescale, sources: list[ir.Value], name: str) -> ir.Value:
    step, q = float(module.y_step), int(module.denominator)
    attributes = _limits(module.y) | {
        "x_scale": step * int(module.numerator) / q,
        "x_zero_point": int(module.x.zero_point),
        "offset": step * int(module.offset_numerator) / q,
        "y_scale": step,
        "y_zero_point": int(module.y.zero_point),
    }
    return emitter.op("Rescale", sources, name, domain=QIL_DOMAIN, attributes=attributes)


def _add(emitter: Emitter, module: FrozenAdd, sources: list[ir.Value], name: str) -> ir.Value:
    step, q = float(module.y.scale), int(module.denominator)
    p_a, p_b = (int(numerator) for numerator in module.numerators)
    attributes = (
        _grid("y", module.y)
        | _limits(module.y)
        | {
            "a_scale": step * p_a / q,
            "a_zero_point": int(module.a.zero_point),
            "b_scale": step * p_b / q,
            "b_zero_point": int(module.b.zero_point),
        }
    )
    return emitter.op("Add", sources, name, domain=QIL_DOMAIN, attributes=attributes)


def _product(emitter: Emitter, module: FrozenProduct, sources: list[ir.Value], name: str) -> ir.Value:
    ratio = float(module.y.scale) * int(module.numerator) / int(module.denominator)
    b_scale = float(module.b.scale)
    if not _LEAST_SCALE < ratio / b_scale < 1 / _LEAST_SCALE:  # where the ratio saturates
        b_scale = math.sqrt(ratio)
    attributes = (
        _grid("y", module.y)
        | _limits(module.y)
        | {
            "a_scale": ratio / b_scale,
            "a_zero_point": int(module.a.zero_point),
            "b_scale": b_scale,
            "b_zero_point": int(module.b.zero_point),
        }
    )
    return emitter.op("Mul", sources, name, domain=QIL_DOMAIN, attributes=attributes)


def _table(emitter: Emitter, module: FrozenTable, sources: list[ir.Value], name: str) -> ir.Value:
    attributes: dict[str, Any] = _grid("x", module.x) | _grid("y", module.y) | _limits(module.y)
    attributes |= {"x_scale": float(module.x_scale), "y_scale": float(module.y_scale)}
    if module.function == "sigmoid":
        return emitter.op("Sigmoid", sources, name, domain=QIL_DOMAIN, attributes=attributes)
    attributes["alpha"] = float(module.slope)
    return emitter.op("LeakyRelu", sources, name, domain=QIL_DOMAIN, attributes=attributes)


def _pool(emitter: Emitter, module: FrozenGlobalAveragePool, sources: list[ir.Value], name: str) -> ir.Value:
    step = float(module.y.scale)
    attributes = _grid("y", module.y) | {
        "x_scale": step * module.window * int(module.numerator) / int(module.denominator),
        "x_zero_point": int(module.x.zero_point),
    }
    return emitter.op("GlobalAveragePool", sources, name, domain=QIL_DOMAIN, attributes=attributes)


def _mean_logits(emitter: Emitter, module: FrozenMeanLogits, sources: list[ir.Value], name: str) -> ir.Value:
    attributes = {
        "scale": float(module.scale),
        "x_zero_point": int(module.x.zero_point),
        "window": module.window,
    }
    return emitter.op("MeanLogits", sources, name, domain=QIL_DOMAIN, attributes=attributes)


def _dequantize(emitter: Emitter, module: FrozenDequantize, sources: list[ir.Value], name: str) -> ir.Value:
    return emitter.op("Dequantize", sources, name, domain=QIL_DOMAIN, attributes=_grid("x", module.x))


_CAPTURES: dict[type[nn.Module], Callable[..., ir.Value]] = {
    FrozenInput: _input,
    FrozenLayer: _layer,
    FrozenRescale: _rescale,
    FrozenAdd: _add,
    FrozenProduct: _product,
    FrozenTable: _table,
    FrozenGlobalAveragePool: _pool,
    FrozenMeanLogits: _mean_logits,
    FrozenDequantize: _dequantize,
}


def _grid(prefix: str, grid: Grid) -> dict[str, float | int]:
    return {f"{prefix}_scale": float(grid.scale), f"{prefix}_zero_point": int(grid.zero_point)}


def _limits(grid: Grid) -> dict[str, int]:
    low, high = grid.limits()
    return {"low": low, "high": high}


def _numpy(tensor: Tensor) -> NDArray[Any]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())
