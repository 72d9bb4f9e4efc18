"""The size of stored weights: the real size of exported ONNX tensors."""

from __future__ import annotations

import pytest

from qil_deploy.onnx_io.weight_storage import stored_bits, stored_bytes


@pytest.mark.parametrize(("bits", "stored"), [(2, 2), (3, 4), (4, 4), (5, 8), (6, 8), (7, 8), (8, 8)])
def test_the_smallest_integer_that_exists(bits: int, stored: int) -> None:
    assert stored_bits(bits) == stored


@pytest.mark.parametrize(
    ("weights", "bits", "size"), [(8, 2, 2), (9, 2, 3), (9, 3, 5), (9, 4, 5), (9, 7, 9), (0, 4, 0)]
)
def test_the_last_byte_is_filled_up(weights: int, bits: int, size: int) -> None:
    assert stored_bytes(weights, bits) == size
