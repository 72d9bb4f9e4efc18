"""Rewrite large linear layers of few bits: MatMulNBits, which multiplies packed weights without unpacking them.

A linear layer on one image reads every weight once, so its time is that of reading them: with 4 bits half, with 2 bits
a quarter of what QGemm reads. MatMulNBits is made for floats, but computes integers exactly where every block of its
input carries the constant 127 against a zero weight, and every weight scale is 1 (`qil_deploy.reference.matmul_nbits`):

    x [, Pad] -> Reshape [batch, blocks, inputs per block] -> Pad with 127 to 128 -> Reshape -> Cast(float)
      -> MatMulNBits -> Cast(int32) [-> Mul(spread)] -> Add(bias)        the accumulator
      -> Cast(float) -> Mul(M) [-> QuantizeLinear(scale 1) -> Clip]      what QGemm does with it

`M = x_scale * w_scale [/ y_scale]`, rounded as QGemm rounds it. The scales of 1 and the zero points are expanded when
the file is loaded, and not stored: scales would be a quarter of 2-bit weights.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qil_deploy.reference import EXACT_LEVEL, LANE_CODE, SUM_LIMIT, zero_point_byte

from .emitter import MICROSOFT_DOMAIN, QIL_DOMAIN, Emitter, array_of, copy_node, integer, real, rewrite
from .lower_to_qlinear import clip

# Below, the operators around the multiplication take longer than reading the weights.
MIN_WEIGHTS = 2**20
MAX_BITS = 4
# The fastest of 32, 64, 128 and 256; with 2 bits, 256 falls off ONNX Runtime's fast path.
BLOCK = 128


def matmul_nbits(model: ir.Model, min_weights: int = MIN_WEIGHTS) -> tuple[ir.Model, list[str]]:
    """Rewrite every `qil.Gemm` that is large, of few bits, and exact in float32's integers.

    Args:
        model: from `capture`; left unchanged.
        min_weights: weights that a layer has to have at least.

    Returns:
        The model, and the names of the rewritten layers.
    """
    rewritten: list[str] = []

    def rule(emitter: Emitter, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
        codes = array_of(inputs[1])
        if codes.size < min_weights or not _is_exact(node, codes.shape[1]):
            return copy_node(emitter, node, inputs)
        rewritten.append(str(node.name))
        return _emit(emitter, node, inputs)

    return rewrite(model, {(QIL_DOMAIN, "Gemm"): rule}), rewritten


def pack_blocks(codes: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Return codes [N, blocks, block] as MatMulNBits stores them: an offset of 2**(bits - 1), low bits first.

    Args:
        codes: -2**(bits - 1) to 2**(bits - 1) - 1.
        bits: 2 or 4.

    Returns:
        uint8 [N, blocks, block * bits / 8].
    """
    per_byte = 8 // bits
    stored = (codes + np.int8(2 ** (bits - 1))).view(np.uint8).reshape(*codes.shape[:2], -1, per_byte)
    packed = np.zeros(stored.shape[:3], np.uint8)
    for place in range(per_byte):
        packed |= stored[..., place] << np.uint8(place * bits)
    return packed


def _is_exact(node: ir.Node, inputs: int) -> bool:
    largest = integer(node, "x_high")
    bits = integer(node, "weight_bits")
    if bits > MAX_BITS or integer(node, "x_zero_point") != 0 or largest > LANE_CODE:
        return False
    blocks, per_block = _split(inputs)
    largest_sum = inputs * largest + blocks * (BLOCK - per_block) * LANE_CODE
    return bool((2 ** _stored_bits(bits) - 1) * largest_sum < SUM_LIMIT)


def _stored_bits(bits: int) -> int:
    return 2 if bits <= 2 else 4


def _split(inputs: int) -> tuple[int, int]:
    """Return how many blocks there are, and how many inputs each of them holds beside at least one constant."""
    blocks = math.ceil(inputs / (BLOCK - 1))
    return blocks, math.ceil(inputs / blocks)


def _emit(emitter: Emitter, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    x, codes, spread, bias, w_scale = inputs
    name, outputs = str(node.name), len(array_of(codes))
    products = _multiply(emitter, node, x, array_of(codes))
    sums = emitter.op("Cast", [products], f"{name}_sums", attributes={"to": ir.DataType.INT32})
    factors = array_of(spread).astype(np.int32)
    if np.any(factors != 1):
        uniform = bool(np.all(factors == factors[0]))
        factor = emitter.constant(factors[0] if uniform else factors, f"{name}_factors")
        sums = emitter.op("Mul", [sums, factor], f"{name}_spread_sums")
    accumulator = emitter.op("Add", [sums, bias], f"{name}_accumulator")
    in_float = emitter.op("Cast", [accumulator], f"{name}_float", attributes={"to": ir.DataType.FLOAT})
    multiplier = np.broadcast_to(np.float32(real(node, "x_scale")) * array_of(w_scale), (outputs,))
    if "y_scale" not in node.attributes:
        return emitter.op(
            "Mul", [in_float, emitter.constant(multiplier, f"{name}_multiplier")], name, node_name=f"{name}_scaled"
        )
    multiplier = multiplier / np.float32(real(node, "y_scale"))
    scaled = emitter.op("Mul", [in_float, emitter.constant(multiplier, f"{name}_multiplier")], f"{name}_scaled")
    grid = [emitter.constant(np.float32(1), ""), emitter.constant(np.uint8(integer(node, "y_zero_point")), "")]
    return clip(emitter, node, emitter.op("QuantizeLinear", [scaled, *grid], name, node_name=f"{name}_quantize"))


def _multiply(emitter: Emitter, node: ir.Node, x: ir.Value, codes: NDArray[np.int8]) -> ir.Value:
    """Return the products of codes [batch, K] and weights [N, K], as float32 integers."""
    name, (outputs, inputs) = str(node.name), codes.shape
    blocks, per_block = _split(inputs)
    bits = _stored_bits(integer(node, "weight_bits"))
    arranged = np.zeros((outputs, blocks, BLOCK), np.int8)
    whole = (blocks - 1) * per_block
    arranged[:, :-1, :per_block] = codes[:, :whole].reshape(outputs, blocks - 1, per_block)
    arranged[:, -1, : inputs - whole] = codes[:, whole:]

    def filled_with(value: np.generic, columns: int, what: str) -> ir.Value:
        shape = emitter.constant(np.array([outputs, columns]), f"{name}_{what}_shape")
        return emitter.op("Expand", [emitter.constant(value, ""), shape], f"{name}_{what}")

    scales = filled_with(np.float32(1), blocks, "scales")
    zero_points = filled_with(np.uint8(zero_point_byte(bits)), math.ceil(blocks * bits / 8), "zero_points")
    stored = emitter.constant(pack_blocks(arranged, bits), f"{name}_weight_packed")
    # ONNX Runtime packs constant weights together with their scales, and takes none where those are no constants yet:
    # so weights, too, become constants only when the graph is optimized. Without, an exact but slow kernel is used.
    weights = emitter.op("Identity", [stored], f"{name}_weight")
    attributes = {
        "N": outputs, "K": blocks * BLOCK, "bits": bits, "block_size": BLOCK, "accuracy_level": EXACT_LEVEL
    }  # fmt: skip
    return emitter.op(
        "MatMulNBits",
        [_with_constants(emitter, name, x, inputs), weights, scales, zero_points],
        f"{name}_products",
        domain=MICROSOFT_DOMAIN,
        attributes=attributes,
        node_name=name,
    )


def _with_constants(emitter: Emitter, name: str, x: ir.Value, inputs: int) -> ir.Value:
    """Return codes [batch, K] as float32 [batch, blocks * BLOCK], each block filled up with the constant."""
    blocks, per_block = _split(inputs)

    def pad(value: ir.Value, pads: list[int], code: int, what: str) -> ir.Value:
        operands = [emitter.constant(np.array(pads), f"{name}_{what}_pads"), emitter.constant(np.uint8(code), "")]
        return emitter.op("Pad", [value, *operands], f"{name}_{what}")

    def reshape(value: ir.Value, shape: list[int], what: str) -> ir.Value:
        # A 0 keeps the batch as it is.
        return emitter.op(
            "Reshape", [value, emitter.constant(np.array([0, *shape]), f"{name}_{what}_shape")], f"{name}_{what}"
        )

    if blocks * per_block > inputs:
        x = pad(x, [0, 0, 0, blocks * per_block - inputs], 0, "filled")
    x = reshape(x, [blocks, per_block], "blocks")
    x = pad(x, [0, 0, 0, 0, 0, BLOCK - per_block], LANE_CODE, "laned")
    x = reshape(x, [blocks * BLOCK], "rows")
    return emitter.op("Cast", [x], f"{name}_codes_float", attributes={"to": ir.DataType.FLOAT})
