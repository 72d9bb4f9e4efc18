"""One random layer, folded: by the project, by hand in NumPy, and as an ONNX file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from hypothesis import event
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx, nn

from qil_deploy.config import LayerOverride, OutputScales, QuantConfig
from qil_deploy.integers.frozen_layer import FrozenLayer
from qil_deploy.network.preparation import prepare
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import QilActivationQuantizer, QilWeightQuantizer, RangeQuantizer

Array = NDArray[Any]

SIZE = 6
LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A random layer `layer`, its input and its reader.

    Attributes:
        x_bits: bits of its input; None: it is the first layer and reads the uint8 image.
        y_bits: bits of its output's interval; None: the 8-bit range.
        norm: BatchNorm behind it, otherwise output scale and bias.
        scaled: whether every layer has an output scale, in front of BatchNorm too.
        gammas: BatchNorm's weights, cycled over the channels.
        lower, width: the output's interval.
    """

    weight_bits: int = 4
    x_bits: int | None = 4
    y_bits: int | None = 4
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    dilation: int = 1
    groups: int = 1
    norm: bool = True
    scaled: bool = False
    relu: bool = True
    train_gamma: bool = False
    gammas: tuple[float, ...] = (1.0,)
    lower: float = 0.0
    width: float = 3.0
    seed: int = 0


class Network(nn.Module):
    """The layer of a case between others that provide its input and its reader."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        channels, wide = 4 * case.groups, 6 * case.groups
        first = case.x_bits is None
        self.stem = nn.Identity() if first else nn.Sequential(nn.Conv2d(4, channels, 1), nn.ReLU())
        self.layer = nn.Conv2d(
            4 if first else channels,
            wide if not first else 6,
            case.kernel,
            case.stride,
            case.padding,
            case.dilation,
            1 if first else case.groups,
            bias=not case.norm,
        )
        out = self.layer.out_channels
        self.norm = nn.BatchNorm2d(out) if case.norm else nn.Identity()
        self.relu = nn.ReLU() if case.relu else nn.Identity()
        self.reader = nn.Conv2d(out, 2, 1)
        self.head = nn.Identity() if case.y_bits is None else nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.reader(self.relu(self.norm(self.layer(self.stem(x)))))).flatten(1)
        return logits


def build(case: Case) -> fx.GraphModule:
    """Return the prepared network of a case, with random parameters of its layer, and the case's output grid."""
    torch.manual_seed(case.seed)
    rng = np.random.default_rng(case.seed)
    overrides = {"layer": LayerOverride(weight_bits=case.weight_bits, activation_bits=case.x_bits)}
    if case.y_bits is not None:
        overrides["reader"] = LayerOverride(weight_bits=4, activation_bits=case.y_bits)
    output_scales: OutputScales = "all" if case.scaled else "without_batchnorm"
    config = QuantConfig(overrides=overrides, train_gamma=case.train_gamma, output_scales=output_scales)
    grid = Preprocessing(channels=4, height=SIZE, width=SIZE, scale=0.0111, zero_point=73)
    model = prepare(Network(case), config, torch.zeros(1, 4, SIZE, SIZE), input_grid=grid).eval()
    quantizer = model.get_submodule("layer.weight_quantizer")
    assert isinstance(quantizer, QilWeightQuantizer)
    with torch.no_grad():
        weight = model.get_parameter("layer.weight")
        weight.normal_()
        quantizer.set_thresholds(float(rng.uniform(-0.5, 0.5)), float(rng.uniform(1, 3)))
        if quantizer.gamma_raw is not None:
            quantizer.gamma_raw.fill_(float(rng.normal(0, 2)))
        if case.norm:
            norm = model.get_submodule("norm")
            assert isinstance(norm, nn.BatchNorm2d)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            channels = weight.shape[1] * (1 if case.x_bits is None else case.groups)
            codes = torch.randint(0, 16, (32, channels, SIZE, SIZE)) / 15
            sums = model.get_submodule("layer")(codes)
            norm.running_mean.copy_(sums.mean((0, 2, 3)))
            norm.running_var.copy_(sums.var((0, 2, 3)))
            repeats = -(-len(norm.weight) // len(case.gammas))
            norm.weight.copy_(torch.tensor((case.gammas * repeats)[: len(norm.weight)]))
            norm.bias.normal_()
        else:
            model.get_parameter("layer.bias").normal_()
        if case.scaled or not case.norm:
            model.get_parameter("layer.log_output_scale").fill_(float(rng.normal(-1, 1)))
        output = output_quantizer(model)
        if isinstance(output, QilActivationQuantizer):
            output.set_thresholds(case.lower, case.lower + case.width)
        else:
            output.set_largest(case.width)
    model.get_buffer("calibrated").fill_(True)  # the thresholds are set by hand
    return model


def output_quantizer(model: fx.GraphModule) -> QilActivationQuantizer | RangeQuantizer:
    (node,) = [node for node in model.graph.nodes if node.target == "reader"]
    quantizer = model.get_submodule(str(node.all_input_nodes[0].target))
    assert isinstance(quantizer, QilActivationQuantizer | RangeQuantizer)
    return quantizer


def layer_of(frozen: fx.GraphModule) -> FrozenLayer:
    layer = frozen.get_submodule("layer")
    assert isinstance(layer, FrozenLayer)
    return layer


def random_codes(layer: FrozenLayer, seed: int, count: int = 4) -> Array:
    """Codes of the layer's input: random ones, and one image each of the smallest and the largest."""
    rng = np.random.default_rng(seed)
    low, high = layer.x.limits()
    shape = (count, layer.layer.weight.shape[1] * getattr(layer.layer, "groups", 1), SIZE, SIZE)
    codes = rng.integers(low, high + 1, shape)
    codes[0], codes[1] = low, high
    return codes.astype(np.int64)


def frozen_codes(layer: FrozenLayer, codes: Array) -> Array:
    with torch.no_grad():
        out = layer(torch.tensor(codes, dtype=torch.float32)).numpy()
    if layer.y is not None:
        assert (out == np.rint(out)).all()
        low, high = layer.y.limits()
        assert out.min() >= low
        assert out.max() <= high
    return np.asarray(out)


def convolve(x: Array, w: Array, case: Case, groups: int) -> Array:
    """Integer convolution by its definition, one tap at a time; `x` is already relative to its zero point."""
    x = np.pad(x, ((0, 0), (0, 0), (case.padding,) * 2, (case.padding,) * 2))
    reach = case.dilation * (case.kernel - 1)
    size = (x.shape[2] - reach - 1) // case.stride + 1
    out = np.zeros((len(x), len(w), size, size), np.int64)
    per_group_in, per_group_out = w.shape[1], len(w) // groups
    for k in range(len(w)):
        first = k // per_group_out * per_group_in
        for i in range(per_group_in):
            for a in range(case.kernel):
                for b in range(case.kernel):
                    rows = slice(a * case.dilation, a * case.dilation + case.stride * size, case.stride)
                    columns = slice(b * case.dilation, b * case.dilation + case.stride * size, case.stride)
                    out[:, k] += w[k, i, a, b] * x[:, first + i, rows, columns]
    return out


@dataclass(frozen=True, kw_only=True)
class Integers:
    """Results of the formulas of `fold` for one layer."""

    weights: Array
    bias: Array
    w_scale: Array
    multiplier: Array


def fold_by_hand(model: fx.GraphModule, case: Case) -> Integers:
    """The docstring of `fold`, channel by channel, in NumPy float64, from the parameters of the unfrozen model."""
    quantizer = model.get_submodule("layer.weight_quantizer")
    assert isinstance(quantizer, QilWeightQuantizer)
    q_w, weight = quantizer.largest_code, model.get_parameter("layer.weight")
    values = quantizer(weight).detach().double().numpy()
    codes = np.rint(values * q_w).astype(np.int64)
    gain, shift = gain_and_shift(model, case)
    output = output_quantizer(model)
    if isinstance(output, QilActivationQuantizer):
        d = float(output.distance.detach())
        y_scale, offset = np.float32(2 * d / output.largest_code), float(output.center.detach()) - d
    else:
        y_scale, offset = np.float32(output.step.detach().numpy()), 0.0
    x_scale = np.float32(0.0111) if case.x_bits is None else np.float32(1 / (2**case.x_bits - 1))
    largest_x = 255 if case.x_bits is None else 2**case.x_bits - 1
    most = max(1, min(127, 32767 // (2 * largest_x)) // q_w)
    weights, bias, scales = np.zeros_like(codes), np.zeros(len(codes)), np.zeros(len(codes), np.float32)
    for k, (g, constant) in enumerate(zip(gain, shift - offset, strict=True)):
        step = float(x_scale) * abs(g) / q_w
        spread = 0
        if step / most >= float(np.finfo(np.float32).tiny) * 2**24:
            while spread < most and abs(constant) * (spread + 1) <= 2**30 * step:
                spread += 1
        if spread:
            scales[k] = np.float32(abs(g) / (q_w * spread))
            weights[k] = np.sign(g) * spread * codes[k]
        else:  # a dead channel: the constant alone, on a grid of 2**-14 codes
            scales[k] = np.float32(float(y_scale) / 2**14 / float(x_scale))
            constant = np.clip(constant, -1024 * float(y_scale), 1024 * float(y_scale))  # noqa: PLW2901
        event("dead channel" if not spread else "smaller spread" if spread < most else "full spread")
        bias[k] = np.rint(constant / (float(x_scale) * float(scales[k])))
    multiplier = (x_scale * scales).astype(np.float32) / y_scale
    return Integers(weights=weights, bias=bias.astype(np.int64), w_scale=scales, multiplier=multiplier)


def gain_and_shift(model: fx.GraphModule, case: Case) -> tuple[Array, Array]:
    scale = np.exp(model.get_parameter("layer.log_output_scale").item()) if case.scaled or not case.norm else 1.0
    if not case.norm:
        bias = model.get_parameter("layer.bias").detach().double().numpy()
        return np.full(len(bias), scale), bias
    norm = model.get_submodule("norm")
    names = ("weight", "bias", "running_mean", "running_var")
    weight, bias, mean, var = (getattr(norm, name).detach().double().numpy() for name in names)
    gain = weight / np.sqrt(var + norm.eps)
    return scale * gain, bias - gain * mean


def evaluate_by_hand(integers: Integers, layer: FrozenLayer, case: Case, codes: Array) -> Array:
    assert layer.y is not None
    groups = getattr(layer.layer, "groups", 1)
    total = convolve(codes - int(layer.x.zero_point), integers.weights, case, groups)
    total += integers.bias[:, None, None]
    assert np.abs(total).max() < 2**31
    scaled = total.astype(np.float32) * integers.multiplier[:, None, None]
    return np.asarray(np.clip(np.rint(scaled) + int(layer.y.zero_point), *layer.y.limits()))


def onnx_model(layer: FrozenLayer, case: Case) -> onnx.ModelProto:
    """One QLinearConv, and a Clip, from the integers of a frozen layer."""
    assert layer.y is not None
    low, high = layer.y.limits()
    spread = layer.spread.numpy().astype(np.int64)[:, None, None, None]
    weights = layer.weight_codes.numpy() * spread
    assert np.abs(weights).max() <= 127
    # On x86 without VNNI two products are added in int16.
    assert 2 * np.abs(weights).max() * int(layer.x.high) <= 32767
    values = {
        "x_scale": layer.x.scale.numpy(),
        "x_zero_point": np.uint8(layer.x.zero_point.item()),
        "w": weights.astype(np.int8),
        "w_scale": layer.w_scale.numpy(),
        "w_zero_point": np.zeros(len(weights), np.int8),
        "y_scale": layer.y_step.numpy(),
        "y_zero_point": np.uint8(layer.y.zero_point.item()),
        "bias": layer.bias.numpy(),
        "low": np.uint8(low),
        "high": np.uint8(high),
    }
    attributes: dict[str, Any] = {
        "strides": [case.stride] * 2,
        "pads": [case.padding] * 4,
        "dilations": [case.dilation] * 2,
        "group": getattr(layer.layer, "groups", 1),
    }
    nodes = [
        helper.make_node("QLinearConv", ["images", *list(values)[:8]], ["codes"], name="conv", **attributes),
        helper.make_node("Clip", ["codes", "low", "high"], ["clipped"], name="clip"),
    ]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", None, SIZE, SIZE])],
        [helper.make_tensor_value_info("clipped", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run_onnxruntime(model: onnx.ModelProto, codes: Array, level: str) -> Array:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": codes.astype(np.uint8)})[0])


def fake_output(model: fx.GraphModule, x: Tensor) -> Tensor:
    """Output of the layer in training, with fake quantization, in codes relative to the zero point."""
    for name in ("layer", "norm", "relu"):
        if any(node.target == name for node in model.graph.nodes):
            x = model.get_submodule(name)(x)
    output = output_quantizer(model)
    unit = output.largest_code if isinstance(output, QilActivationQuantizer) else 1 / output.step.detach()
    codes: Tensor = output(x) * unit
    return codes


def fake_codes(model: fx.GraphModule, layer: FrozenLayer, codes: Array) -> Array:
    assert layer.y is not None
    with torch.no_grad():
        x = (torch.tensor(codes, dtype=torch.float32) - layer.x.zero_point) * layer.x.scale
        return np.asarray(fake_output(model, x).round().numpy() + int(layer.y.zero_point))
