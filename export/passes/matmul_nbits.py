"""Rewrite large linear layers of few bits: MatMulNBits, which multiplies packed weights without unpacking them.

A linear layer on one image reads every weight once, so its time is that of reading them: with 4 bits half, with 2 bits
a quarter of what QGemm reads. MatMulNBits is made for floats, but computes integers exactly if every block of its
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
from onnxscript.rewriter import MatchContext, MatchResult

from qil_deploy.export.emitter import MICROSOFT_DOMAIN, QIL_DOMAIN, array_of, integer, real
from qil_deploy.reference import EXACT_LEVEL, LANE_CODE, SUM_LIMIT, zero_point_byte

from .lower_to_qlinear import clip
from .replacement import Replacement, inputs_of, producer_of
from .rule import NodeRule

# Below this, the operators around the multiplication take longer than reading the weights.
MIN_WEIGHTS = 2**20
MAX_BITS = 4
# The fastest of 32, 64, 128 and 256; with 2 bits, 256 falls off ONNX Runtime's fast path.
BLOCK = 128


class MatMulNBits(NodeRule):
    """Rewrites linear layers that are large, of few bits, and exact in float32's integers."""

    domain, op_type = QIL_DOMAIN, "Gemm"

    def __init__(self, min_weights: int | None = None) -> None:
        """Rewrite layers that have at least `min_weights`, by default `MIN_WEIGHTS`."""
        super().__init__()
        self._min_weights = MIN_WEIGHTS if min_weights is None else min_weights

    def check(self, op: MatchContext, result: ir.Value) -> MatchResult:
        """Skip layers that would be no faster, and those whose sums float32 would round."""
        del op
        node, match = producer_of(result), MatchResult()
        codes = array_of(inputs_of(node)[1])
        if codes.size < self._min_weights:
            return match.fail(f"it has fewer than {self._min_weights:,} weights", node)
        reason = _why_inexact(node, codes.shape[1])
        return match if reason is None else match.fail(reason, node)

    def rewrite(self, op: Replacement, result: ir.Value) -> ir.Value:
        """Write the multiplication, and QGemm's operations on its sums."""
        node = producer_of(result)
        return _emit(op, node, inputs_of(node))


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


def _why_inexact(node: ir.Node, inputs: int) -> str | None:
    """Return the reason why MatMulNBits would not compute a layer's integers exactly; None if it does."""
    largest = integer(node, "x_high")
    bits = integer(node, "weight_bits")
    if bits > MAX_BITS:
        return f"its weights have {bits} bits, more than {MAX_BITS}"
    if integer(node, "x_zero_point") != 0:
        return "the codes it reads have a zero point other than 0"
    if largest > LANE_CODE:
        return f"the codes it reads reach {largest}, above {LANE_CODE}"
    blocks, per_block = _split(inputs)
    largest_sum = inputs * largest + blocks * (BLOCK - per_block) * LANE_CODE
    if (2 ** _stored_bits(bits) - 1) * largest_sum >= SUM_LIMIT:
        return f"its sums may reach {SUM_LIMIT:,}, where float32 rounds integers"
    return None


def _stored_bits(bits: int) -> int:
    return 2 if bits <= 2 else 4


def _split(inputs: int) -> tuple[int, int]:
    """Return the number of blocks, and the number of inputs that each holds beside at least one constant."""
    blocks = math.ceil(inputs / (BLOCK - 1))
    return blocks, math.ceil(inputs / blocks)


def _emit(new: Replacement, node: ir.Node, inputs: list[ir.Value]) -> ir.Value:
    x, codes, spread, bias, w_scale = inputs
    name, outputs = str(node.name), len(array_of(codes))
    products = _multiply(new, node, x, array_of(codes))
    sums = new.op("Cast", [products], f"{name}_sums", attributes={"to": ir.DataType.INT32})
    factors = array_of(spread).astype(np.int32)
    if np.any(factors != 1):
        uniform = bool(np.all(factors == factors[0]))
        factor = new.constant(factors[0] if uniform else factors, f"{name}_factors")
        sums = new.op("Mul", [sums, factor], f"{name}_spread_sums")
    accumulator = new.op("Add", [sums, bias], f"{name}_accumulator")
    in_float = new.op("Cast", [accumulator], f"{name}_float", attributes={"to": ir.DataType.FLOAT})
    multiplier = np.broadcast_to(np.float32(real(node, "x_scale")) * array_of(w_scale), (outputs,))
    if "y_scale" not in node.attributes:
        return new.op(
            "Mul", [in_float, new.constant(multiplier, f"{name}_multiplier")], name, node_name=f"{name}_scaled"
        )
    multiplier = multiplier / np.float32(real(node, "y_scale"))
    scaled = new.op("Mul", [in_float, new.constant(multiplier, f"{name}_multiplier")], f"{name}_scaled")
    grid = [new.constant(np.float32(1), ""), new.constant(np.uint8(integer(node, "y_zero_point")), "")]
    return clip(new, node, new.op("QuantizeLinear", [scaled, *grid], name, node_name=f"{name}_quantize"))


def _multiply(new: Replacement, node: ir.Node, x: ir.Value, codes: NDArray[np.int8]) -> ir.Value:
    """Return the products of codes [batch, K] and weights [N, K], as float32 integers."""
    name, (outputs, inputs) = str(node.name), codes.shape
    blocks, per_block = _split(inputs)
    bits = _stored_bits(integer(node, "weight_bits"))
    arranged = np.zeros((outputs, blocks, BLOCK), np.int8)
    whole = (blocks - 1) * per_block
    arranged[:, :-1, :per_block] = codes[:, :whole].reshape(outputs, blocks - 1, per_block)
    arranged[:, -1, : inputs - whole] = codes[:, whole:]

    def filled_with(value: np.generic, columns: int, what: str) -> ir.Value:
        shape = new.constant(np.array([outputs, columns]), f"{name}_{what}_shape")
        return new.op("Expand", [new.constant(value, ""), shape], f"{name}_{what}")

    scales = filled_with(np.float32(1), blocks, "scales")
    zero_points = filled_with(np.uint8(zero_point_byte(bits)), math.ceil(blocks * bits / 8), "zero_points")
    stored = new.constant(pack_blocks(arranged, bits), f"{name}_weight_packed")
    # ONNX Runtime packs constant weights together with their scales, and takes none if those are not constants yet: so
    # weights, too, become constants only when the graph is optimized. Otherwise an exact but slow kernel is used.
    weights = new.op("Identity", [stored], f"{name}_weight")
    attributes = {
        "N": outputs, "K": blocks * BLOCK, "bits": bits, "block_size": BLOCK, "accuracy_level": EXACT_LEVEL
    }  # fmt: skip
    return new.op(
        "MatMulNBits",
        [_with_constants(new, name, x, inputs), weights, scales, zero_points],
        f"{name}_products",
        domain=MICROSOFT_DOMAIN,
        attributes=attributes,
        node_name=name,
    )


def _with_constants(new: Replacement, name: str, x: ir.Value, inputs: int) -> ir.Value:
    """Return codes [batch, K] as float32 [batch, blocks * BLOCK], each block padded with the constant."""
    blocks, per_block = _split(inputs)

    def pad(value: ir.Value, pads: list[int], code: int, what: str) -> ir.Value:
        operands = [new.constant(np.array(pads), f"{name}_{what}_pads"), new.constant(np.uint8(code), "")]
        return new.op("Pad", [value, *operands], f"{name}_{what}")

    def reshape(value: ir.Value, shape: list[int], what: str) -> ir.Value:
        # A 0 keeps the batch as it is.
        return new.op("Reshape", [value, new.constant(np.array([0, *shape]), f"{name}_{what}_shape")], f"{name}_{what}")

    if blocks * per_block > inputs:
        x = pad(x, [0, 0, 0, blocks * per_block - inputs], 0, "filled")
    x = reshape(x, [blocks, per_block], "blocks")
    x = pad(x, [0, 0, 0, 0, 0, BLOCK - per_block], LANE_CODE, "laned")
    x = reshape(x, [blocks * BLOCK], "rows")
    return new.op("Cast", [x], f"{name}_codes_float", attributes={"to": ir.DataType.FLOAT})
