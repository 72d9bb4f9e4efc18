"""How large stored weight codes are: the rule that export stores by and that size budgets are reckoned with."""

from __future__ import annotations


def stored_bits(bits: int) -> int:
    """Return the width of the smallest stored integer for weight codes of so many bits: 2, 4 or 8.

    ONNX has INT2, INT4 and INT8 and nothing between them: codes of 3 bits take as much room as codes of 4.
    """
    if bits <= 2:
        return 2
    return 4 if bits <= 4 else 8


def stored_bytes(weights: int, bits: int) -> int:
    """Return the bytes of so many packed weight codes; the last byte is filled up."""
    return -(-weights * stored_bits(bits) // 8)
