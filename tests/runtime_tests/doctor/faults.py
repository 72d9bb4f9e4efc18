"""One small file for each fault that `doctor` finds, and similar files without faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from .graph_files import CONVOLUTION, Constants, X, Y, build_model, constants

# Kind, severity, and places; in these, * stands for what depends on the machine or the release.
Expected = tuple[str, str, tuple[str, ...]]

I32, F32, F16, I8, U8, U16 = np.int32, np.float32, np.float16, np.int8, np.uint8, np.uint16


@dataclass(frozen=True)
class Case:
    """A file, and the expected findings of `doctor`."""

    body: str
    values: Constants
    expected: tuple[Expected, ...] = ()
    x: str = X
    y: str = Y
    options: dict[str, Any] = field(default_factory=dict)
    edit: Callable[[onnx.ModelProto], None] | None = None
    remedies: dict[str, str] = field(default_factory=dict)  # by kind, what the remedy says among other things
    x86: bool = False  # whether it speaks of kernels that only x86 lacks

    def build(self) -> onnx.ModelProto:
        model = build_model(self.body, self.values, self.x, self.y, **self.options)
        if self.edit is not None:
            self.edit(model)
        return model


def floating(reason: str, node: str = "Conv 'sum'", before: str = "x_value", behind: str = "y") -> tuple[Expected, ...]:
    """Return the findings for one operator between codes that stays float."""
    return island(node, before, behind), unfused(f"{node}: {reason}")


def island(node: str, before: str = "x_value", behind: str = "y") -> Expected:
    place = f"{node}, between DequantizeLinear '{before}' and QuantizeLinear '{behind}'"
    return ("float-island", "slow", (place,))


def unfused(*places: str) -> Expected:
    return ("qdq-unfused", "slow", places)


def wrong(*places: str) -> Expected:
    return ("optimizer-changes-result", "wrong", places or ("output 'y': * differ, by up to *",))


def failing(kind: str = "does-not-run") -> Expected:
    return (kind, "blocks", ("[ONNXRuntimeError] : *",))


def behind_convolution(nodes: str, last: str) -> str:
    """Return the convolution with nodes between it and QuantizeLinear, which reads `last`."""
    return CONVOLUTION.replace("y = ", f"{nodes}\n y = ").replace("(sum, y_scale", f"({last}, y_scale")


def behind_linear(nodes: str, last: str) -> str:
    """Return the linear layer with nodes between it and QuantizeLinear, which reads `last`."""
    return LINEAR.replace("y = ", f"{nodes}\n y = ").replace("(sum, y_scale", f"({last}, y_scale")


def by_channel(kernel: str, scales: int) -> Expected:
    """Return the findings for an integer kernel that reads activations with several scales."""
    return (
        "scale-shape",
        "blocks",
        (
            f"{kernel}: its input has {scales} scales, and may have one",
            f"{kernel}: its input has {scales} zero points, and may have one",
            f"DequantizeLinear 'x_value': activations have {scales} scales, and may have one",
        ),
    )


def simulated(place: str, severity: str = "slow") -> tuple[Expected, ...]:
    return (("fake-quantization", severity, (place,)),)


def inputs_too(model: onnx.ModelProto) -> None:
    """List all initializers among the inputs."""
    for tensor in model.graph.initializer:
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        model.graph.input.append(info)


def pack(model: onnx.ModelProto) -> None:
    """Store the weights w in 4 bits."""
    for tensor in model.graph.initializer:
        if tensor.name == "w":
            tensor.data_type = TensorProto.INT4
            tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]


BIASED = CONVOLUTION.replace("(x_value, w_value)", "(x_value, w_value, b_value)").replace(
    "sum =", "b_value = DequantizeLinear<axis = 0>(b, b_scale)\n sum ="
)
BIAS_SCALE = np.array([0.01, 0.02, 0.03], F32)
BIAS: dict[str, Any] = {"b": np.array([-90, 0, 90], I32), "b_scale": BIAS_SCALE}
FLOAT_WEIGHTS = np.linspace(-2, 2, 54, dtype=F32).reshape(3, 2, 3, 3)
OTHER_AXIS = "scales along axis {} of DequantizeLinear 'w_value'"
RANK_4 = "[3, 1, 1, 1]; one number or a list of them is allowed"
RELU = "ReLU stands before the zero point 128, which is not the smallest uint8 code"
SIGNED: dict[str, Any] = {"x": "int8[1,2,8,8] x", "y": "int8[1,3,6,6] y"}

# Four features become four.
LINEAR = """
    x_value = DequantizeLinear(x, x_scale, x_zero)
    w_value = DequantizeLinear<axis = 1>(w, w_scale, w_zero)
    sum = Gemm(x_value, w_value)
    y = QuantizeLinear(sum, y_scale, y_zero)
"""
FEATURES: dict[str, Any] = {"x": "uint8[1,4] x", "y": "uint8[1,4] y"}
SQUARE = np.array([[9, -3, 2, 5], [4, 8, -7, 1], [-6, 3, 7, -2], [2, 6, -1, 9]], I8)
DIFFERENT = np.array([0.02, 0.2, 0.1, 0.4], F32)
LINEAR_VALUES: dict[str, Any] = constants(
    w=SQUARE, w_scale=DIFFERENT, w_zero=np.zeros(4, I8), y_scale=F32(0.5), y_zero=U8(128)
)

UNARY = "x_value = DequantizeLinear(x, x_scale, x_zero)\n s = {}\n y = QuantizeLinear(s, y_scale, y_zero)"
MAP: dict[str, Any] = {"x": "uint8[1,4,4,4] x", "y": "uint8[1,4,N,M] y"}
ADDITION = """
    x_value = DequantizeLinear(x, x_scale, x_zero)
    s = Add(x_value, f)
    y = QuantizeLinear(s, y_scale, y_zero)
"""
BY_CHANNEL = np.array([0.1, 0.2, 0.3, 0.4], F32)

BRANCHES = """
    y = If(yes)<
        then_branch = one () => (uint8[1,3,6,6] a) {{
            xa = DequantizeLinear(x, x_scale, x_zero)
            wa = DequantizeLinear<axis = 0>(w, w_scale, w_zero)
            sum_a = Conv(xa, wa)
            a = QuantizeLinear(sum_a, y_scale, y_zero)
        }},
        else_branch = two () => (uint8[1,3,6,6] b) {{
            xb = DequantizeLinear(x, x_scale, x_zero)
            wb = DequantizeLinear<axis = 0>(w, w_scale, w_zero)
            sum_b = Conv(xb, wb)
            act_b = {}(sum_b)
            b = QuantizeLinear(act_b, y_scale, y_zero)
        }}
    >
"""
LOOP = """
    y = Loop(times, yes, x)<
        body = one (int64 i, bool go_on, uint8[1,2,8,8] codes) => (bool again, uint8[1,2,8,8] c) {
            again = Identity(go_on)
            v = DequantizeLinear(codes, x_scale, x_zero)
            u = Tanh(v)
            c = QuantizeLinear(u, y_scale, y_zero)
        }
    >
"""
FUNCTION = """<domain: "local", opset_import: ["" : 21]>
    layer (x, xs, xz, w, ws, wz, ys, yz) => (y) {
        xv = DequantizeLinear(x, xs, xz)
        wv = DequantizeLinear<axis = 0>(w, ws, wz)
        s = Conv(xv, wv)
        y = QuantizeLinear(s, ys, yz)
    }"""
CALL = "y = local.layer(x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero)"
QLINEAR = "y = QLinearConv(x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero{})"

FLOAT_X, FLOAT_Y = "float[1,2,8,8] x", "float[1,3,6,6] y"
FLOATS: dict[str, Any] = {"x": FLOAT_X, "y": FLOAT_Y}
GRID: dict[str, Any] = {"s": F32(0.1), "low": F32(0), "high": F32(15), "w": np.ones((3, 2, 3, 3), F32), "z": F32(0)}
FAKE_INPUT = "a = Div(x, s)\n r = Round(a)\n c = Clip(r, low, high)\n q = Mul(c, s)\n"

# What is fine, though it resembles what is not.
FINE: dict[str, Case] = {
    "a fused convolution": Case(CONVOLUTION, constants()),
    "a fused convolution with a bias": Case(BIASED, constants(**BIAS)),
    "a bias that is off by a hundredth": Case(BIASED, constants(b=BIAS["b"], b_scale=BIAS_SCALE * F32(1.01))),
    "weights that are quantized in the file": Case(
        CONVOLUTION.replace("w_value = ", "codes = QuantizeLinear<axis = 0>(w, w_scale, w_zero)\n w_value = ").replace(
            "DequantizeLinear<axis = 0>(w,", "DequantizeLinear<axis = 0>(codes,"
        ),
        constants(w=FLOAT_WEIGHTS),
    ),
    "ReLU before the smallest code": Case(behind_convolution("r = Relu(sum)", "r"), constants()),
    "Clip that QuantizeLinear does": Case(
        behind_convolution("r = Clip(sum, low, high)", "r"), constants(low=F32(0), high=F32(510))
    ),
    "initializers that are inputs and keep nothing from fusing": Case(CONVOLUTION, constants(), edit=inputs_too),
    "scales along another axis that are all equal": Case(
        LINEAR.replace("axis = 1", "axis = 0"), {**LINEAR_VALUES, "w_scale": np.full(4, 0.1, F32)}, **FEATURES
    ),
    "single numbers written as lists": Case(
        CONVOLUTION, constants(x_scale=np.full(1, 0.1, F32), y_zero=np.zeros(1, U8))
    ),
    "branches with fused convolutions": Case(BRANCHES.format("Relu"), constants(), x=f"{X}, bool yes"),
    "a function that is inlined and fused": Case(CALL, constants(), options={"functions": FUNCTION}),
    "int8 that ONNX Runtime makes uint8": Case(
        "q = QuantizeLinear(x, x_scale, x_zero)\n"
        + CONVOLUTION.replace("(x, x_scale", "(q, x_scale")
        + "z = DequantizeLinear(y, y_scale, y_zero)",
        constants(x_zero=I8(0), y_zero=I8(0)),
        x=FLOAT_X,
        y="float[1,3,6,6] z",
    ),
    "inputs of free sizes": Case(CONVOLUTION, constants(), x="uint8[N,2,H,W] x", y="uint8[N,3,A,B] y"),
    "strings beside codes": Case(
        CONVOLUTION + "\n name = Identity(text)", constants(), x=f"{X}, string[N] text", y=f"{Y}, string[N] name"
    ),
}

_SCALES: dict[str, Case] = {
    "weight scales along the input channels of a convolution": Case(
        CONVOLUTION.replace("axis = 0", "axis = 1"),
        constants(w=np.tile(SQUARE[..., None, None], (1, 1, 3, 3)), w_scale=DIFFERENT, w_zero=np.zeros(4, I8)),
        (
            wrong(),
            ("scale-axis", "wrong", (f"Conv 'sum': {OTHER_AXIS.format(1)}, and output channels along axis 0",)),
        ),
        x="uint8[1,4,8,8] x",
        y="uint8[1,4,6,6] y",
        remedies={"optimizer-changes-result": "Mend what explains it."},
    ),
    "weight scales along the input channels of Gemm": Case(
        LINEAR.replace("axis = 1", "axis = 0"),
        LINEAR_VALUES,
        (
            wrong(),
            ("scale-axis", "wrong", (f"Gemm 'sum': {OTHER_AXIS.format(0)}, and output channels along axis 1",)),
        ),
        **FEATURES,
    ),
    "weight scales along the input channels of MatMul": Case(
        LINEAR.replace("axis = 1", "axis = 0").replace("Gemm", "MatMul"),
        LINEAR_VALUES,
        floating("its weights' scales lie along axis 0, and its output channels along axis 1", "MatMul 'sum'"),
        **FEATURES,
    ),
    "weight scales along the default axis": Case(
        CONVOLUTION.replace("<axis = 0>", ""),
        constants(),
        (
            wrong("[ONNXRuntimeError] : *"),
            ("scale-shape", "wrong", ("DequantizeLinear 'w_value': it has 3 scales along axis 1, which has 2",)),
        ),
        remedies={"scale-shape": "its default is 1"},
    ),
    "weight scales of rank 4": Case(
        CONVOLUTION,
        constants(w_scale=np.full((3, 1, 1, 1), 0.1, F32), w_zero=np.zeros((3, 1, 1, 1), I8)),
        (
            failing(),
            (
                "scale-shape",
                "blocks",
                (
                    f"DequantizeLinear 'w_value': its scale has shape {RANK_4}",
                    f"QLinearConv of weights 'w': its weights' scales have shape {RANK_4}",
                    f"QLinearConv of weights 'w': its weights' zero points have shape {RANK_4}",
                ),
            ),
        ),
    ),
    "one zero point for three scales": Case(
        CONVOLUTION,
        constants(w_zero=I8(0)),
        (
            wrong("[ONNXRuntimeError] : *"),
            ("scale-shape", "wrong", ("DequantizeLinear 'w_value': its scale has shape [3], its zero point []",)),
        ),
    ),
    "an axis beyond the tensor": Case(
        CONVOLUTION.replace("axis = 0", "axis = 7"),
        constants(),
        (
            wrong("[ONNXRuntimeError] : *"),
            ("scale-shape", "wrong", ("DequantizeLinear 'w_value': its axis is 7, and its input has 4 dimensions",)),
        ),
    ),
    "too few weight scales of QLinearConv": Case(
        QLINEAR.format(""),
        constants(w_scale=np.full(2, 0.1, F32)),
        (
            failing(),
            ("scale-shape", "blocks", ("QLinearConv 'y': its weights have 2 scales, and 3 output channels",)),
        ),
    ),
    "too few biases of QLinearConv": Case(
        QLINEAR.format(", b"),
        constants(b=np.zeros(2, I32)),
        (
            failing(),
            ("scale-shape", "blocks", ("QLinearConv 'y': its bias has 2 numbers, and it has 3 output channels",)),
        ),
    ),
    "activations with a scale for each channel": Case(
        CONVOLUTION,
        constants(x_scale=np.array([0.1, 0.2], F32), x_zero=np.zeros(2, U8)),
        (failing(), by_channel("QLinearConv of weights 'w'", 2)),
        remedies={"does-not-run": "It runs with optimizations disabled"},
    ),
    "results with a scale for each channel": Case(
        CONVOLUTION,
        constants(y_scale=np.array([1, 2, 3], F32), y_zero=np.zeros(3, U8)),
        (
            failing(),
            (
                "scale-shape",
                "blocks",
                (
                    "QLinearConv of weights 'w': its result has 3 scales, and may have one",
                    "QLinearConv of weights 'w': its result has 3 zero points, and may have one",
                ),
            ),
        ),
    ),
    "a pool with a scale for each channel": Case(
        UNARY.format("GlobalAveragePool(x_value)"),
        constants(x_scale=BY_CHANNEL, x_zero=np.zeros(4, U8)),
        (failing(), by_channel("QLinearGlobalAveragePool 'y'", 4)),
        **MAP,
    ),
    "a sigmoid with a scale for each channel": Case(
        UNARY.format("Sigmoid(x_value)"),
        constants(x_scale=BY_CHANNEL, x_zero=np.zeros(4, U8)),
        (
            failing("does-not-load"),
            (
                "scale-shape",
                "blocks",
                ("DequantizeLinear 'x_value': activations have 4 scales, and may have one",),
            ),
        ),
        **MAP,
        remedies={"does-not-load": "It loads with graph optimizations disabled"},
    ),
    "a scale of zero": Case(
        CONVOLUTION,
        constants(w_scale=np.array([0.1, 0, 0.3], F32)),
        (("bad-scale", "inexact", ("DequantizeLinear 'w_value'",)),),
    ),
}

_BIASES: dict[str, Case] = {
    "a bias with another scale": Case(
        BIASED,
        constants(b=BIAS["b"], b_scale=np.array([0.01, 0.02, 0.5], F32)),
        floating("its bias has the scale 0.5, and those of input and weights multiply to 0.03"),
        remedies={"qdq-unfused": "(scale of the input) * (scale of the weights)"},
    ),
    "a bias with one scale for weights with three": Case(
        BIASED.replace("DequantizeLinear<axis = 0>(b", "DequantizeLinear(b"),
        constants(b=BIAS["b"], b_scale=F32(0.01)),
        floating("the scales of its bias are 1, and those of its weights 3"),
    ),
    "a bias of int8": Case(
        BIASED, constants(b=np.zeros(3, I8), b_scale=BIAS_SCALE), floating("its bias is int8, where sums are int32")
    ),
    "a bias with a zero point": Case(
        BIASED.replace("(b, b_scale)", "(b, b_scale, b_zero)"),
        constants(**BIAS, b_zero=np.ones(3, I32)),
        floating("its bias has a zero point other than 0"),
    ),
    "a bias that two layers with different inputs share": Case(
        f"{BIASED} x2_value = DequantizeLinear(x, x2_scale, x_zero)\n sum2 = Conv(x2_value, w_value, b_value)\n"
        "y2 = QuantizeLinear(sum2, y_scale, y_zero)",
        constants(**BIAS, x2_scale=F32(0.5)),
        floating(
            "its bias has the scale 0.01, and those of input and weights multiply to 0.05",
            "Conv 'sum2'",
            "x2_value",
            "y2",
        ),
        y=f"{Y}, uint8[1,3,6,6] y2",
        remedies={"qdq-unfused": "must be stored once for each"},
    ),
    "a bias of Gemm with another scale": Case(
        LINEAR.replace("(x_value, w_value)", "(x_value, w_value, b_value)").replace(
            "sum =", "b_value = DequantizeLinear<axis = 0>(b, b_scale)\n sum ="
        ),
        {**LINEAR_VALUES, "b": np.array([900, -900, 500, -500], I32), "b_scale": np.full(4, 0.05, F32)},
        (
            wrong(),
            (
                "bias-scale",
                "wrong",
                ("Gemm 'sum': its bias has the scale 0.05, and those of input and weights multiply to 0.002",),
            ),
        ),
        **FEATURES,
    ),
    "a bias of Gemm with beta": Case(
        LINEAR.replace("Gemm(x_value, w_value)", "Gemm<beta = 2.0>(x_value, w_value, b_value)").replace(
            "sum =", "b_value = DequantizeLinear<axis = 0>(b, b_scale)\n sum ="
        ),
        {**LINEAR_VALUES, "b": np.zeros(4, I32), "b_scale": DIFFERENT * F32(0.1)},
        floating("its beta is 2.0, beside a bias", "Gemm 'sum'"),
        **FEATURES,
    ),
    "a bias whose scale may be replaced": Case(
        BIASED,
        constants(**BIAS),
        floating(
            "'b_scale', which the scale of its sums depends on, is an initializer that is an input of the model *"
        ),
        edit=inputs_too,
        remedies={"qdq-unfused": "Take initializers out of the inputs of the graph"},
    ),
}

_CODES: dict[str, Case] = {
    "codes of 16 bits": Case(
        CONVOLUTION,
        constants(x_zero=U16(0), y_zero=U16(0)),
        floating("its input is uint16 codes"),
        x="uint16[1,2,8,8] x",
        y="uint16[1,3,6,6] y",
        remedies={"qdq-unfused": "Use 8 bits"},
    ),
    "results of 16 bits": Case(
        CONVOLUTION, constants(y_zero=U16(0)), floating("its result is quantized to uint16"), y="uint16[1,3,6,6] y"
    ),
    "weights of 16 bits": Case(
        CONVOLUTION,
        constants(w=np.ones((3, 2, 3, 3), np.int16), w_zero=np.zeros(3, np.int16)),
        floating("its weights are int16 codes"),
    ),
    "scales of float16": Case(
        CONVOLUTION,
        constants(x_scale=F16(0.1), w_scale=np.full(3, 0.1, F16), y_scale=F16(2)),
        floating("its input is dequantized to float16"),
        remedies={"qdq-unfused": "in float32"},
    ),
    "int8 codes in QLinearConv": Case(
        QLINEAR.format(""),
        constants(x_zero=I8(0), y_zero=I8(0)),
        (("s8s8", "slow", ("QLinearConv of weights 'w'",)),),
        **SIGNED,
        x86=True,
    ),
    "int8 codes that stay int8": Case(
        CONVOLUTION,
        constants(x_zero=I8(0), y_zero=I8(0)),
        (
            ("s8s8", "slow", ("Conv 'sum'",)),
            *floating("it reads int8 codes, and no integer kernel for it does on *"),
        ),
        **SIGNED,
        x86=True,
    ),
    "int8 codes and uint8 weights": Case(
        CONVOLUTION,
        constants(x_zero=I8(0), y_zero=I8(0), w=np.ones((3, 2, 3, 3), U8), w_zero=np.zeros(3, U8)),
        (("s8s8", "slow", ("Conv 'sum'",)), *floating("it reads int8 codes and has uint8 weights")),
        **SIGNED,
        x86=True,
    ),
    "uint8 codes in, int8 codes out": Case(
        CONVOLUTION,
        constants(y_zero=I8(0)),
        floating("it reads uint8 codes and makes int8 ones, where all must be of one type"),
        y="int8[1,3,6,6] y",
    ),
    "float weights between codes": Case(
        "few = Clip(x, low, high)\n"
        + CONVOLUTION.replace("(x, x_scale", "(few, x_scale").replace(
            "w_value = DequantizeLinear<axis = 0>(w, w_scale, w_zero)", ""
        ),
        constants(w_value=FLOAT_WEIGHTS, low=U8(0), high=U8(15)),
        (("float-weights", "inexact", ("QLinearConv of weights '_weight_q'",)),),
    ),
    "weights of a convolution alone": Case(
        "w_value = DequantizeLinear<axis = 0>(w, w_scale, w_zero)\n y = Conv(x, w_value)",
        constants(),
        (("float-end", "slow", ("Conv 'y', between the input and the output",)),),
        x=FLOAT_X,
        y=FLOAT_Y,
    ),
    "MatMulNBits that the optimizer makes": Case(
        "w_value = DequantizeLinear<axis = 0, block_size = 16>(w, s)\n y = MatMul(x, w_value)",
        {"w": np.zeros((32, 4), I8), "s": np.ones((2, 4), F32)},
        (
            ("rounding-by-machine", "inexact", ("MatMulNBits 'y'",)),
            ("float-end", "note", ("MatMulNBits 'y', between the input and the output",)),
        ),
        x="float[1,32] x",
        y="float[1,4] y",
        edit=pack,
        remedies={"rounding-by-machine": "Give DequantizeLinear of these weights its zero points"},
    ),
}

_RESULTS: dict[str, Case] = {
    "ReLU before a zero point in the middle": Case(
        behind_convolution("r = Relu(sum)", "r"),
        constants(y_zero=U8(128)),
        floating(f"{RELU}, 0: *", "FusedConv 'r'"),
        remedies={"qdq-unfused": "the smallest code as zero point"},
    ),
    "ReLU behind Gemm before a zero point in the middle": Case(
        behind_linear("r = Relu(sum)", "r"), LINEAR_VALUES, floating(f"{RELU}, 0: *", "FusedGemm 'r'"), **FEATURES
    ),
    "ReLU behind MatMul before a zero point in the middle": Case(
        behind_linear("r = Relu(sum)", "r").replace("Gemm", "MatMul"),
        LINEAR_VALUES,
        (island("MatMul 'sum', Relu 'r'"), unfused(f"MatMul 'sum': {RELU}, 0: *")),
        **FEATURES,
    ),
    "Clip that cuts more than QuantizeLinear": Case(
        behind_convolution("r = Clip(sum, low, high)", "r"),
        constants(low=F32(0), high=F32(6)),
        floating("Clip comes before QuantizeLinear 'y', whose codes reach beyond its bounds", "FusedConv 'r'"),
    ),
    "a sigmoid behind a convolution": Case(
        behind_convolution("r = Sigmoid(sum)", "r"),
        constants(y_scale=F32(1 / 256)),
        floating("Sigmoid stands between it and QuantizeLinear, and was fused into it in float", "FusedConv 'r'"),
    ),
    "ReLU and a tanh behind MatMul": Case(
        behind_linear("r = Relu(sum)\n t = Tanh(r)", "t").replace("Gemm", "MatMul"),
        LINEAR_VALUES,
        (
            island("MatMul 'sum', Relu 'r', Tanh 't'"),
            unfused("MatMul 'sum': its result goes to Relu 'r', not to QuantizeLinear"),
        ),
        **FEATURES,
    ),
    "a sum behind a convolution": Case(
        behind_convolution("s = Add(sum, other)\n r = Relu(s)", "r"),
        constants(),
        (
            island("Conv 'sum', Add 's'"),
            unfused("Conv 'sum': its result goes to Add 's', not to QuantizeLinear"),
        ),
        x=f"{X}, float[1,3,6,6] other",
    ),
    "float weights and bias before a tanh": Case(
        behind_linear("t = Tanh(sum)", "t").replace("(x_value, w_value)", "(x_value, f, b)"),
        {**LINEAR_VALUES, "f": np.ones((4, 4), F32), "b": np.ones(4, F32)},
        floating("Tanh stands between it and QuantizeLinear, and was fused into it in float", "FusedGemm 't'"),
        **FEATURES,
    ),
    "two quantizers read one result": Case(
        CONVOLUTION + "y2 = QuantizeLinear(sum, x_scale, y_zero)",
        constants(),
        floating("2 QuantizeLinear read its result, where one may", behind="y', QuantizeLinear 'y2"),
        y=f"{Y}, uint8[1,3,6,6] y2",
    ),
    "a result that is an output as well": Case(
        CONVOLUTION,
        constants(),
        floating("its result is also an output of the model, not quantized"),
        y=f"{Y}, float[1,3,6,6] sum",
    ),
    "max pooling with other scales": Case(
        UNARY.format("MaxPool<kernel_shape = [2, 2]>(x_value)"),
        constants(),
        floating("its input and its result have other scales or zero points, or none are written", "MaxPool 's'"),
        **MAP,
    ),
    "an addition with a float constant": Case(
        ADDITION, constants(f=F32(2)), floating("its constant input 'f' is float", "Add 's'"), **MAP
    ),
    "an addition with a float input": Case(
        ADDITION,
        constants(),
        floating("its input from outside is float", "Add 's'"),
        x="uint8[1,4,4,4] x, float[1,4,4,4] f",
        y=MAP["y"],
    ),
}

_SIMULATED: dict[str, Case] = {
    "a grid of Div, Round, Clip and Mul": Case(FAKE_INPUT + "y = Conv(q, w)", GRID, simulated("Round 'r'"), **FLOATS),
    "a grid of weights that is rounded in the file": Case(
        "a = Div(w, s)\n r = Round(a)\n q = Mul(r, s)\n y = Conv(x, q)", GRID, simulated("Round 'r'"), **FLOATS
    ),
    "a grid with a zero point": Case(
        "a = Mul(x, s)\n r = Round(a)\n b = Add(r, z)\n c = Clip(b, low, high)\n d = Sub(c, z)\n q = Mul(d, s)\n"
        "y = Conv(q, w)",
        GRID,
        simulated("Round 'r'"),
        **FLOATS,
    ),
    "QONNX's Quant": Case(
        "q = qonnx.custom_op.general.Quant(x, s, z, high)\n y = Conv(q, w)",
        GRID,
        (failing("does-not-load"), *simulated("Quant 'q'", "blocks")),
        **FLOATS,
        remedies={"does-not-load": "Export the model with operators of the standard", "fake-quantization": "QCDQ"},
    ),
    "OpenVINO's FakeQuantize": Case(
        "q = elsewhere.FakeQuantize(x, low, high, low, high)\n y = Conv(q, w)",
        GRID,
        (failing("does-not-load"), *simulated("FakeQuantize 'q'", "blocks")),
        **FLOATS,
    ),
    "TensorFlow's FakeQuantWithMinMaxVars": Case(
        "q = elsewhere.FakeQuantWithMinMaxVars(x, low, high)\n y = Conv(q, w)",
        GRID,
        (failing("does-not-load"), *simulated("FakeQuantWithMinMaxVars 'q'", "blocks")),
        **FLOATS,
    ),
    "weights dequantized by Cast and Mul": Case(
        "f = Cast<to = 1>(w)\n m = Mul(f, s)\n y = Conv(x, m)",
        {**GRID, "w": np.ones((3, 2, 3, 3), I8)},
        (("dequantized-by-hand", "slow", ("Conv 'y': weights 'w', int8",)),),
        **FLOATS,
    ),
    "weights dequantized by Cast, Sub, Mul and Transpose": Case(
        "f = Cast<to = 1>(w)\n d = Sub(f, z)\n m = Mul(s, d)\n t = Transpose<perm = [1, 0]>(m)\n y = Gemm(x, t)",
        {**GRID, "w": np.ones((3, 2), U8)},
        (("dequantized-by-hand", "slow", ("Gemm 'y': weights 'w', uint8",)),),
        x="float[1,2] x",
        y="float[1,3] y",
    ),
}

_INNER_GRAPHS: dict[str, Case] = {
    "a branch that computes in float": Case(
        BRANCHES.format("Sigmoid"),
        constants(y_scale=F32(1 / 256)),
        floating(
            "Sigmoid stands between it and QuantizeLinear, and was fused into it in float",
            "in else_branch of If 'y': FusedConv 'act_b'",
            "xb",
            "b",
        ),
        x=f"{X}, bool yes",
    ),
    "a loop that computes in float": Case(
        LOOP,
        constants(y_scale=F32(0.1)),
        (island("in body of Loop 'y': Tanh 'u'", "v", "c"),),
        x=f"{X}, int64 times, bool yes",
        y="uint8[1,2,8,8] y",
    ),
    "a function that computes in float": Case(
        CALL,
        constants(),
        floating(
            "Tanh stands between it and QuantizeLinear, and was fused into it in float",
            "FusedConv '_inlfunc_layer_t'",
            "_inlfunc_layer_xv",
        ),
        options={"functions": FUNCTION.replace("y = Q", "t = Tanh(s)\n y = Q").replace("(s, ys", "(t, ys")},
    ),
}

_UNLOADABLE: dict[str, Case] = {
    "an operator set of the future": Case(
        CONVOLUTION,
        constants(),
        (failing("does-not-load"),),
        options={"opset": 999},
        remedies={"does-not-load": "at most, or use a newer ONNX Runtime: this one does not know version 999"},
    ),
    "a file format of the future": Case(
        CONVOLUTION,
        constants(),
        (failing("does-not-load"),),
        options={"ir_version": 999},
        remedies={"does-not-load": "at most (model.ir_version), or use a newer ONNX Runtime: this one does not know"},
    ),
    "an operator of nobody's": Case(
        "y = elsewhere.Strange(x)",
        {},
        (failing("does-not-load"), ("not-quantized", "note", ("the whole graph",))),
        remedies={"does-not-load": "or load the library that has this one"},
    ),
    "types that do not fit": Case(CONVOLUTION, constants(x_zero=I8(0)), (failing("does-not-load"),)),
}

FAULTS: dict[str, Case] = {
    **_SCALES,
    **_BIASES,
    **_CODES,
    **_RESULTS,
    **_SIMULATED,
    **_INNER_GRAPHS,
    **_UNLOADABLE,
}
