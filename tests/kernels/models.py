"""Files of one low-bit convolution, random ones among them, and their results with and without the library."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import FunctionProto, ModelProto, TensorProto, helper, numpy_helper

INPUTS = ["x", "x_scale", "x_zero_point", "w", "w_scale", "w_zero_point", "y_scale", "y_zero_point", "bias"]
INPUTS += ["low", "high", "x_high"]
ATTRIBUTES = ["kernel_shape", "strides", "pads", "dilations", "group"]


@dataclass
class Convolution:
    """One low-bit convolution: `w` holds codes times a multiplier, [O, C / group, kh, kw]."""

    w: NDArray[np.int8]
    bias: NDArray[np.int32]
    w_scale: NDArray[np.float32]  # of one value, or one per output channel
    x_scale: float = 1 / 3
    y_scale: float = 1.0
    y_zero_point: int = 0
    low: int = 0
    high: int = 255
    x_high: int = 3
    x_zero_point: int = 0
    strides: list[int] = field(default_factory=lambda: [1, 1])
    pads: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    dilations: list[int] = field(default_factory=lambda: [1, 1])
    group: int = 1
    operator: str = "LowBitConv"

    def model(self) -> ModelProto:
        """Return a file with the node and the function that replaces it."""
        constants = {
            "x_scale": np.float32(self.x_scale),
            "x_zero_point": np.uint8(self.x_zero_point),
            "w": self.w,
            "w_scale": self.w_scale,
            "w_zero_point": np.zeros(self.w_scale.shape, np.int8),
            "y_scale": np.float32(self.y_scale),
            "y_zero_point": np.uint8(self.y_zero_point),
            "bias": self.bias,
            "low": np.uint8(self.low),
            "high": np.uint8(self.high),
            "x_high": np.uint8(self.x_high),
        }
        node = helper.make_node(
            self.operator,
            INPUTS,
            ["y"],
            domain="qil.deploy",
            kernel_shape=list(self.w.shape[2:]),
            strides=self.strides,
            pads=self.pads,
            dilations=self.dilations,
            group=self.group,
        )
        graph = helper.make_graph(
            [node],
            "one",
            [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", "c", "h", "w"])],
            [helper.make_tensor_value_info("y", TensorProto.UINT8, ["n", "o", "p", "q"])],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("qil.deploy", 1)]
        return helper.make_model(graph, functions=[function(self.operator)], opset_imports=opsets, ir_version=10)


def function(operator: str) -> FunctionProto:
    """Return the function that a file contains for one of the operators."""
    convolution = helper.make_node("QLinearConv", INPUTS[:9], ["sum"])
    for name in ATTRIBUTES:
        attribute = convolution.attribute.add()
        attribute.name = attribute.ref_attr_name = name
        attribute.type = 2 if name == "group" else 7  # INT, INTS
    clip = helper.make_node("Clip", ["sum", "low", "high"], ["y"])
    opset = [helper.make_opsetid("", 21)]
    return helper.make_function("qil.deploy", operator, INPUTS, ["y"], [convolution, clip], opset, ATTRIBUTES)


def without_constant(model: ModelProto, name: str) -> None:
    """Turn a constant of a file into an input."""
    (constant,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    model.graph.initializer.remove(constant)
    value = model.graph.input.add()
    value.name = name
    value.type.tensor_type.elem_type = constant.data_type


def session(model: ModelProto | bytes, library: Path | None, threads: int = 1) -> onnxruntime.InferenceSession:
    """Return a session of the file, with the library or (None) without."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if library is not None:
        options.register_custom_ops_library(str(library))
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(
    model: ModelProto | bytes, x: NDArray[np.uint8], library: Path | None = None, threads: int = 1
) -> NDArray[np.uint8]:
    """Return the output of one run."""
    output: NDArray[np.uint8] = session(model, library, threads).run(None, {"x": x})[0]
    return output


def random_convolution(
    rng: np.random.Generator, largest_code: int, x_high: int, groups: int = 1
) -> tuple[Convolution, NDArray[np.uint8]]:
    """Return a convolution of random shape in the form of exports, and an input. Outputs spread over many codes."""
    kernel = [int(rng.choice([1, 2, 3, 3, 3, 5, 7])) for _ in range(2)]
    if rng.random() < 0.7:
        kernel[1] = kernel[0]
    channels = int(rng.integers(1, 40 if max(kernel) > 3 else 70)) * (groups if groups > 1 else 1)
    outputs = int(rng.integers(1, 70)) * groups if groups > 1 else int(rng.integers(1, 70))
    w = rng.integers(-largest_code, largest_code + 1, (outputs, channels // groups, *kernel))
    w[rng.random(w.shape) < 0.7 * rng.random()] = 0
    multipliers = rng.integers(1, 127 // largest_code + 1, outputs)
    if rng.random() < 0.5:
        multipliers[:] = multipliers[0]
    w *= multipliers[:, None, None, None]
    if rng.random() < 0.2:
        w[0] = 0
    per_channel = rng.random() < 0.7
    spread = np.sqrt(w[0].size) * largest_code * 127 / max(largest_code, 1) * x_high * 0.0001
    dilations = [int(rng.choice([1, 1, 1, 2, 3])) for _ in range(2)]
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    style = rng.random()
    if style < 0.5:
        pads = [r // 2 for r in reach] * 2
    elif style < 0.7:
        pads = [0] * 4
    else:
        pads = [int(rng.integers(0, r + 2)) for r in reach * 2]
    size = [max(1, r + 1 - pads[i] - pads[i + 2]) for i, r in enumerate(reach)]
    size = [s if rng.random() < 0.1 else s + int(rng.integers(0, 30 if i == 0 else 70)) for i, s in enumerate(size)]
    convolution = Convolution(
        w=w.astype(np.int8),
        bias=rng.integers(-2000, 2000, outputs).astype(np.int32),
        w_scale=(rng.uniform(0.5, 1.5, outputs if per_channel else ()) * 0.01).astype(np.float32),
        x_scale=float(rng.choice([1 / 3, 0.7])),
        y_scale=float(rng.uniform(0.2, 1.2) * spread),
        y_zero_point=int(rng.choice([0, 0, 128, 7, 255])),
        low=int(rng.integers(0, 5)) if rng.random() < 0.3 else 0,
        high=int(rng.integers(1, 256)) if rng.random() < 0.3 else int(rng.choice([3, 15, 255])),
        x_high=x_high,
        strides=[int(rng.choice([1, 1, 2, 3])) for _ in range(2)],
        pads=pads,
        dilations=dilations,
        group=groups,
        operator="TernaryConv" if (largest_code, x_high, groups) == (1, 3, 1) else "LowBitConv",
    )
    x = rng.integers(0, x_high + 1, (int(rng.choice([1, 1, 3])), channels, *size)).astype(np.uint8)
    return convolution, x


def random_depthwise(rng: np.random.Generator, code: int, x_high: int) -> tuple[Convolution, NDArray[np.uint8]]:
    """Return a random layer with one output channel for each input channel."""
    convolution, x = random_convolution(rng, code, x_high, groups=int(rng.integers(1, 70)))
    channels = convolution.group
    scales = convolution.w_scale if convolution.w_scale.ndim == 0 else convolution.w_scale[:channels]
    one_each = replace(convolution, w=convolution.w[:channels, :1], bias=convolution.bias[:channels], w_scale=scales)
    return one_each, x[:, :channels]


def three_by_three(rng: np.random.Generator, largest_code: int, x_high: int) -> tuple[Convolution, NDArray[np.uint8]]:
    """Return a random 3x3 convolution of stride 1 with at least 16 channels on either side, and an input."""
    channels, outputs = int(rng.integers(16, 100)), int(rng.integers(16, 150))
    codes = rng.integers(-largest_code, largest_code + 1, (outputs, channels, 3, 3))
    codes[rng.random(codes.shape) < 0.7 * rng.random()] = 0
    convolution = three_by_three_of(rng, codes, x_high)
    size = [int(rng.integers(max(1, 3 - pad), 36)) for pad in convolution.pads[:2]]
    return convolution, rng.integers(0, x_high + 1, (int(rng.choice([1, 1, 3])), channels, *size)).astype(np.uint8)


def three_by_three_of(
    rng: np.random.Generator,
    codes: NDArray[np.integer],
    x_high: int,
    largest_weight: int = 127,
) -> Convolution:
    """Return a convolution of stride 1 of these weight codes, [O, C, 3, 3]. Outputs spread over many codes."""
    largest, outputs = int(np.abs(codes).max(initial=1)), int(codes.shape[0])
    multipliers = rng.integers(1, largest_weight // largest + 1, outputs)
    return Convolution(
        w=(codes * multipliers[:, None, None, None]).astype(np.int8),
        bias=rng.integers(-2000, 2000, outputs).astype(np.int32),
        w_scale=rng.uniform(0.005, 0.015, outputs).astype(np.float32),
        y_scale=float(rng.uniform(0.2, 1.2) * np.sqrt(codes[0].size) * largest * x_high * 0.001),
        y_zero_point=int(rng.choice([0, 0, 128, 7])),
        low=int(rng.choice([0, 0, 2])),
        high=int(rng.choice([3, 15, 255])),
        x_high=x_high,
        pads=[1, 1, 1, 1] if rng.random() < 0.5 else [int(pad) for pad in rng.integers(0, 4, 4)],
        operator="TernaryConv" if (largest, x_high) == (1, 3) else "LowBitConv",
    )
