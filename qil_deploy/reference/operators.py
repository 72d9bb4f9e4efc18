"""The table of ONNX operators: one row for each that exports write, the reference executes, or other code asks about.

A row says what an operator does to the elements it reads, how the reference executes it, where its scales, weights and
bias are among its inputs, and what ONNX Runtime turns it into. To add an operator, add one row, and the functions that
it names (`compute`, `costs`); code that asks about a node asks its row (`operator_lookup`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from qil_deploy.onnx_io import (
    KERNEL_CONVOLUTIONS,
    KERNEL_DOMAIN,
    KERNEL_INPUTS,
    LOW_BIT_MATMUL,
    LOW_BIT_MAX_POOL,
    LOW_BIT_RESCALE,
    PART_DOMAIN,
    PART_OPERATOR,
    RESIDUAL_ADD,
)

from . import compute, costs
from .operator_row import FLOAT32, INT8, Effect, GridAt, Operator

MICROSOFT: Final = "com.microsoft"
_WINDOW = frozenset({"kernel_shape", "strides", "dilations", "pads"})
_UNARY = (GridAt("input", 1, 2), GridAt("result", 3, 4))
_BINARY = (GridAt("first input", 1, 2), GridAt("second input", 4, 5), GridAt("result", 6, 7))


def _executed() -> Iterable[Operator]:
    """Yield the operators that the reference executes: those of exports, and those that QDQ files are fused to."""
    yield Operator(
        name="QLinearConv",
        effect=Effect.QUANTIZES,
        compute=compute.qlinear_conv,
        cost=costs.convolved,
        attributes=_WINDOW | {"group"},
        exact=True,
        grids=(GridAt("input", 1, 2), GridAt("weights", 4, 5, many=True), GridAt("result", 6, 7)),
        weights=3,
        bias=8,
        arithmetic=INT8,
    )
    for name in KERNEL_CONVOLUTIONS:
        yield Operator(
            name=name,
            domain=KERNEL_DOMAIN,
            effect=Effect.QUANTIZES,
            compute=compute.low_bit_conv,
            cost=costs.convolved,
            attributes=_WINDOW | {"group"},
            least_inputs=len(KERNEL_INPUTS),
            exact=True,
            grids=(GridAt("input", 1, 2), GridAt("weights", 4, 5, many=True), GridAt("result", 6, 7)),
            weights=3,
            bias=8,
            arithmetic=INT8,
        )
    yield Operator(
        name="ConvInteger",
        compute=compute.conv_integer,
        cost=costs.convolved_to_sums,
        attributes=_WINDOW | {"group"},
        exact=True,
        weights=1,
        arithmetic=INT8,
        result_type="int32",
    )
    yield Operator(
        name="QGemm",
        domain=MICROSOFT,
        effect=Effect.QUANTIZES,
        compute=compute.qgemm,
        cost=costs.multiplied,
        attributes=frozenset({"transB"}),
        grids=(GridAt("input", 1, 2), GridAt("weights", 4, 5, many=True), GridAt("result", 7, 8)),
        weights=3,
        bias=6,
        arithmetic=INT8,
    )
    for name, domain in (("MatMulNBits", MICROSOFT), (LOW_BIT_MATMUL, KERNEL_DOMAIN)):
        yield Operator(
            name=name,
            domain=domain,
            compute=compute.matmul_nbits,
            cost=costs.multiplied_nbits,
            attributes=frozenset({"N", "K", "bits", "block_size", "accuracy_level"}),
            weights=1,
            arithmetic=INT8,
        )
    for name, domain in (("QLinearAdd", MICROSOFT), (RESIDUAL_ADD, KERNEL_DOMAIN)):
        yield Operator(
            name=name,
            domain=domain,
            effect=Effect.QUANTIZES,
            compute=compute.qlinear_add,
            cost=costs.quantized_sum,
            exact=True,
            grids=_BINARY,
        )
    yield Operator(
        name=LOW_BIT_RESCALE,
        domain=KERNEL_DOMAIN,
        effect=Effect.QUANTIZES,
        compute=compute.low_bit_rescale,
        cost=costs.quantized_sum,
        least_inputs=10,
        exact=True,
        grids=_BINARY,
    )
    yield Operator(
        name="QLinearMul",
        domain=MICROSOFT,
        effect=Effect.QUANTIZES,
        compute=compute.qlinear_mul,
        cost=costs.quantized_sum,
        exact=True,
        grids=_BINARY,
    )
    yield Operator(
        name="QLinearSigmoid",
        domain=MICROSOFT,
        effect=Effect.QUANTIZES,
        compute=compute.qlinear_sigmoid,
        cost=costs.same_size,
        exact=True,  # where the table has no entry near a tie, as in certified files
        grids=_UNARY,
    )
    yield Operator(
        name="QLinearLeakyRelu",
        domain=MICROSOFT,
        effect=Effect.QUANTIZES,
        compute=compute.qlinear_leaky_relu,
        cost=costs.same_size,
        attributes=frozenset({"alpha"}),
        exact=True,  # as above
        grids=_UNARY,
    )
    yield Operator(
        name="QLinearAveragePool",
        domain=MICROSOFT,
        effect=Effect.QUANTIZES,
        compute=compute.qlinear_average_pool,
        cost=costs.pooled,
        attributes=_WINDOW | {"ceil_mode", "count_include_pad"},
        grids=_UNARY,
    )
    yield Operator(
        name="QLinearGlobalAveragePool",
        domain=MICROSOFT,
        effect=Effect.QUANTIZES,
        compute=compute.qlinear_global_average_pool,
        cost=costs.same_size,
        exact=True,
        grids=_UNARY,
    )
    yield Operator(
        name="QuantizeLinear",
        effect=Effect.QUANTIZES,
        compute=compute.quantize_linear,
        cost=costs.on_grid,
        attributes=frozenset({"axis"}),
        least_inputs=2,
        grids=(GridAt("result", 1, 2, many=True),),
    )
    yield Operator(
        name="DequantizeLinear",
        compute=compute.dequantize_linear,
        cost=costs.on_grid,
        attributes=frozenset({"axis"}),
        least_inputs=2,
        grids=(GridAt("input", 1, 2, many=True),),
    )
    yield Operator(name="Clip", effect=Effect.BOUNDS, compute=compute.clip, cost=costs.broadcast, exact=True)
    yield Operator(
        name="MaxPool",
        effect=Effect.CHOOSES,
        compute=compute.max_pool,
        cost=costs.pooled,
        attributes=_WINDOW | {"ceil_mode"},
        exact=True,
        fused_to="MaxPool",
        sinks=True,
    )
    yield Operator(
        name=LOW_BIT_MAX_POOL,
        domain=KERNEL_DOMAIN,
        effect=Effect.CHOOSES,
        compute=compute.max_pool,
        cost=costs.pooled,
        attributes=frozenset({"kernel_shape", "strides", "pads"}),
        exact=True,
    )
    yield Operator(
        name="Resize",
        effect=Effect.CHOOSES,
        compute=compute.resize,
        cost=costs.resized,
        attributes=frozenset({"mode", "coordinate_transformation_mode", "nearest_mode", "cubic_coeff_a"}),
        exact=True,
        fused_to="Resize",
    )
    yield Operator(
        name="Concat",
        effect=Effect.JOINS,
        compute=compute.concat,
        cost=costs.joined,
        attributes=frozenset({"axis"}),
        exact=True,
        fused_to="QLinearConcat",
    )
    yield Operator(
        name="Flatten",
        effect=Effect.MOVES,
        compute=compute.flatten,
        cost=costs.same_size,
        attributes=frozenset({"axis"}),
    )
    yield Operator(name="Reshape", effect=Effect.MOVES, compute=compute.reshape, cost=costs.same_size, sinks=True)
    yield Operator(
        name="Transpose",
        effect=Effect.MOVES,
        compute=compute.transpose,
        cost=costs.same_size,
        attributes=frozenset({"perm"}),
    )
    yield Operator(name="Slice", effect=Effect.MOVES, compute=compute.take_slice, cost=costs.same_size, least_inputs=3)
    yield Operator(
        name="Pad", effect=Effect.MOVES, compute=compute.pad, cost=costs.padded, attributes=frozenset({"mode"})
    )
    yield Operator(name="Expand", effect=Effect.MOVES, compute=compute.expand, cost=costs.expanded)
    yield Operator(name="Identity", effect=Effect.MOVES, compute=compute.identity, cost=costs.same_size, sinks=True)
    yield Operator(
        name="Cast", effect=Effect.CASTS, compute=compute.cast, cost=costs.cast, attributes=frozenset({"to"})
    )
    yield Operator(
        name="Add",
        compute=compute.add,
        cost=costs.broadcast,
        least_inputs=2,
        exact=True,
        fused_to="QLinearAdd",
    )
    yield Operator(name="Sub", compute=compute.subtract, cost=costs.broadcast, exact=True)
    yield Operator(
        name="Mul",
        compute=compute.multiply,
        cost=costs.broadcast,
        least_inputs=2,
        exact=True,
        fused_to="QLinearMul",
    )
    yield Operator(
        name="ReduceSum",
        compute=compute.reduce_sum,
        cost=costs.reduced,
        attributes=frozenset({"keepdims"}),
        exact=True,
    )
    yield Operator(name=PART_OPERATOR, domain=PART_DOMAIN, compute=compute.kept_in_float)


def _float_operators() -> Iterable[Operator]:
    """Yield the operators that compute in float, and may be fused to an integer kernel."""
    yield Operator(name="Conv", weights=1, bias=2, arithmetic=FLOAT32, least_inputs=2, fused_to="QLinearConv")
    yield Operator(name="Gemm", weights=1, bias=2, arithmetic=FLOAT32, least_inputs=2, fused_to="QGemm")
    yield Operator(name="MatMul", weights=1, arithmetic=FLOAT32, fused_to="QLinearMatMul")
    yield Operator(name="ConvTranspose", weights=1, bias=2, arithmetic=FLOAT32)
    fused = {"FusedConv": "QLinearConv", "FusedGemm": "QGemm"}
    for name, kernel in fused.items():
        yield Operator(name=name, domain=MICROSOFT, weights=1, bias=2, arithmetic=FLOAT32, fused_to=kernel)
    yield Operator(name="FusedMatMul", domain=MICROSOFT, weights=1, arithmetic=FLOAT32)
    yield Operator(name="AveragePool", least_inputs=1, fused_to="QLinearAveragePool")
    yield Operator(name="GlobalAveragePool", least_inputs=1, fused_to="QLinearGlobalAveragePool")
    yield Operator(name="Sigmoid", least_inputs=1, fused_to="QLinearSigmoid")
    yield Operator(name="LeakyRelu", least_inputs=1, fused_to="QLinearLeakyRelu")
    yield Operator(name="Relu", effect=Effect.BOUNDS)
    for name in ("ReduceMax", "ReduceMin"):
        yield Operator(name=name, effect=Effect.CHOOSES, fused_to=name)


def _quantized_operators() -> Iterable[Operator]:
    """Yield the operators of quantized models from other programs, and those that ONNX Runtime makes of them."""
    # ONNX Runtime's form of MaxPool between convolutions.
    yield Operator(name="NhwcMaxPool", domain=MICROSOFT, effect=Effect.CHOOSES, exact=True)
    yield Operator(
        name="QLinearMatMul",
        effect=Effect.QUANTIZES,
        grids=(
            GridAt("input", 1, 2, many=True),
            GridAt("weights", 4, 5, many=True),
            GridAt("result", 6, 7, many=True),
        ),
        weights=3,
        arithmetic=INT8,
    )
    yield Operator(name="QLinearSoftmax", domain=MICROSOFT, effect=Effect.QUANTIZES, grids=_UNARY)
    yield Operator(name="QLinearConcat", domain=MICROSOFT, effect=Effect.QUANTIZES, grids=(GridAt("result", 0, 1),))
    yield Operator(name="MatMulInteger", weights=1, arithmetic=INT8, result_type="int32")
    for name in ("MatMulIntegerToFloat", "DynamicQuantizeMatMul"):
        yield Operator(name=name, domain=MICROSOFT, weights=1, arithmetic=INT8, result_type="float32")
    yield Operator(name="DynamicQuantizeLinear", quantized=True)
    for name in (
        *("DynamicQuantizeLSTM", "GatherBlockQuantized", "MatMulBnb4", "MatMulFpQ4", "MatMulInteger16", "QAttention"),
        *("QEmbedLayerNormalization", "QMoE"),
    ):
        yield Operator(name=name, domain=MICROSOFT, quantized=True)


def _other_operators() -> Iterable[Operator]:
    """Yield the operators that move elements or have a fixed result type, and are not executed here."""
    for name in ("DepthToSpace", "Gather", "SpaceToDepth", "Split", "Squeeze", "Tile", "Unsqueeze"):
        yield Operator(name=name, effect=Effect.MOVES)
    for name in ("ReorderInput", "ReorderOutput"):
        yield Operator(name=name, domain="com.microsoft.nchwc", effect=Effect.LAYOUT)
    for name in ("Shape", "Size", "NonZero", "ArgMax", "ArgMin"):
        yield Operator(name=name, result_type="int64")
    for name in ("Equal", "Greater", "Less", "Not", "And", "Or"):
        yield Operator(name=name, result_type="bool")


OPERATORS: Final[dict[str, Operator]] = {
    operator.name: operator
    for operators in (_executed(), _float_operators(), _quantized_operators(), _other_operators())
    for operator in operators
}
