"""MatMulNBits for cases in which it is exact: integer codes times weights of a few bits, in blocks of scale 1.

ONNX Runtime's kernel with accuracy level 4 rounds the floats of a block to int8 by a scale of its own,
`max(|A|) / 127`. For integers that reach 127 in every block, as one constant lane ensures, the scale is 1 and nothing
is rounded. The sums are float32, exact while no partial sum reaches 2**24. Anything else is refused: the
result would depend on the kernel.

Zero points are written out, though they equal the default: ONNX Runtime on arm64 with dot product hands 4-bit
weights without zero points to other kernels, which round whole rows, asymmetrically.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LANE_CODE = 127
EXACT_LEVEL = 4
SUM_LIMIT = 2**24


def unpack_blocks(packed: Array, shape: tuple[int, int], bits: int, block: int) -> Array:
    """Unpack weights stored for MatMulNBits to [N, blocks, block], int16.

    Args:
        packed: uint8 [N, blocks, block * bits / 8], low bits first, codes with an offset of 2**(bits - 1).
        shape: (N, K).
        bits: 2, 4 or 8.
        block: inputs per block.

    Raises:
        ValueError: bits or shapes that do not fit together.
    """
    check_blocks(packed, shape, bits, block)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    return codes.reshape(shape[0], shape[1] // block, block).astype(np.int16) - np.int16(2 ** (bits - 1))


def check_blocks(packed: Array, shape: tuple[int, int], bits: int, block: int) -> None:
    """Raise ValueError unless `unpack_blocks` accepts the same arguments."""
    outputs, inputs = shape
    if bits not in (2, 4, 8) or block < 1 or inputs % block:
        raise ValueError(f"{inputs} inputs in blocks of {block} with {bits} bits are not supported")
    blocks = inputs // block
    if packed.dtype != np.uint8 or packed.shape != (outputs, blocks, block * bits // 8):
        raise ValueError(
            f"weights are {packed.dtype} of shape {list(packed.shape)}; {outputs} outputs of {blocks} blocks of "
            f"{block} inputs with {bits} bits take uint8 of shape {[outputs, blocks, block * bits // 8]}"
        )


def zero_point_byte(bits: int) -> int:
    """Return the byte that is full of zero points, each `2**(bits - 1)`."""
    return sum(2 ** (bits - 1) << shift for shift in range(0, 8, bits))


def check_zero_points(zero_points: Array | None, outputs: int, blocks: int, bits: int) -> None:
    """Raise unless weights have zero points, in the middle of their range.

    Args:
        zero_points: uint8, `bits` each, low bits first: for each of `outputs` those of `blocks`, in whole bytes.
        outputs, blocks, bits: of the weights.

    Raises:
        ValueError: they do not.
    """
    if zero_points is None:
        raise ValueError("no zero points are given; without, some processors round whole rows of the data")
    size = outputs * -(-blocks * bits // 8)
    if zero_points.dtype != np.uint8 or zero_points.size != size or np.any(zero_points != zero_point_byte(bits)):
        raise ValueError(
            f"zero points are {zero_points.dtype} of shape {list(zero_points.shape)}; {outputs} outputs of {blocks} "
            f"blocks with {bits} bits take {size} bytes, each {zero_point_byte(bits)}"
        )


def matmul_nbits(a: Array, weights: Array, scales: Array, bits: int, level: int) -> Array:
    """Multiply rows of codes by weights (com.microsoft MatMulNBits, accuracy level 4).

    sum(A[n] * W[k]), exact. A kernel may multiply by the stored codes `W + 2**(bits - 1)` and subtract the offset's
    part later: neither may leave what float32 holds exactly.

    Args:
        a: float32 [rows, K], integers, in every block up to 127 and no further.
        weights: integers [N, blocks, block].
        scales: float32, one per output and block, all 1.
        bits: of the stored weights.
        level: accuracy level.

    Returns:
        float32 integers [rows, N].

    Raises:
        ValueError: ONNX Runtime would round: another accuracy level, a scale other than 1, data that are no
            integers, or a block whose largest magnitude is not 127.
        OverflowError: a partial sum may reach 2**24.
    """
    outputs, blocks, block = weights.shape
    if a.ndim != 2 or a.shape[1] != blocks * block:
        raise ValueError(f"data of shape {list(a.shape)} do not fit weights of {blocks * block} inputs")
    if level != EXACT_LEVEL:
        raise ValueError(f"accuracy_level is {level}; only {EXACT_LEVEL} is supported")
    if scales.size != outputs * blocks or np.any(scales != 1):
        raise ValueError("the scales are not all 1, so that sums would be rounded")
    magnitudes = np.abs(a)
    if np.any(a != np.rint(a)) or np.any(magnitudes.reshape(-1, blocks, block).max(axis=2) != LANE_CODE):
        raise ValueError(f"the data are not integers that reach {LANE_CODE} in every block, so they would be rounded")
    bound = (2**bits - 1) * int(magnitudes.sum(axis=1, dtype=np.float64).max(initial=0))
    if bound >= SUM_LIMIT:
        raise OverflowError(f"a partial sum may reach {bound}, and float32 holds integers below {SUM_LIMIT}")
    product: Array = a @ weights.reshape(outputs, -1).astype(np.float32).T
    return product
