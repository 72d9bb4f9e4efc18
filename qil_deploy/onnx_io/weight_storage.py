"""Storage of weight codes: the rule for the size of an export, and for size budgets."""

from __future__ import annotations


def stored_bits(bits: int) -> int:
    """Return the width of the smallest integer type that stores weight codes of `bits` bits: 2, 4 or 8.

    ONNX has INT2, INT4 and INT8 and nothing between them: codes of 3 bits take as much room as codes of 4.
    """
    if bits <= 2:
        return 2
    return 4 if bits <= 4 else 8


def stored_bytes(weights: int, bits: int) -> int:
    """Return the size in bytes of `weights` packed weight codes; the last byte is padded."""
    return -(-weights * stored_bits(bits) // 8)
