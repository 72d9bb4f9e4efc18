"""MatMulNBits on integers with a constant lane of 127 in every block: exact, and refused without its conditions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto

from qil_deploy.errors import ModelFileError
from qil_deploy.reference import IntegerReference
from qil_deploy.reference.matmul_nbits import LANE_CODE, check_zero_points, unpack_blocks, zero_point_byte

if TYPE_CHECKING:
    from tests.reference.conftest import Comparison, Graph

Array = NDArray[Any]
MICROSOFT = "com.microsoft"


def packed(codes: Array, bits: int) -> Array:
    """Weights [N, blocks, block] in the form of MatMulNBits: codes with an offset, low bits first."""
    stored = (codes.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8).reshape(*codes.shape[:2], -1, 8 // bits)
    return np.asarray(np.bitwise_or.reduce(stored << np.arange(0, 8, bits, dtype=np.uint8), axis=-1), np.uint8)


def add_matmul(
    graph: Graph, data: str, codes: Array, bits: int, scale: float = 1.0, level: int = 4, zero_point: int | None = None
) -> str:
    outputs, blocks, block = codes.shape
    byte = zero_point_byte(bits) if zero_point is None else zero_point
    return graph.node(
        "MatMulNBits",
        data,
        graph.constant(packed(codes, bits)),
        graph.constant(np.full((outputs, blocks), scale, np.float32)),
        graph.constant(np.full((outputs, -(-blocks * bits // 8)), byte, np.uint8)),
        domain=MICROSOFT,
        N=outputs,
        K=blocks * block,
        bits=bits,
        block_size=block,
        accuracy_level=level,
    )


def weights(rng: np.random.Generator, outputs: int, blocks: int, block: int, bits: int) -> Array:
    largest = 2 ** (bits - 1) - 1
    codes = rng.integers(-largest, largest, (outputs, blocks, block), np.int8, endpoint=True)
    codes[:, :, -1] = 0  # meets the lane
    return codes


def laned(rng: np.random.Generator, rows: int, blocks: int, block: int, largest: int) -> Array:
    codes = rng.integers(0, largest, (rows, blocks, block), np.uint8, endpoint=True)
    codes[:, :, -1] = LANE_CODE
    return codes.reshape(rows, -1)


@given(
    bits=st.sampled_from((2, 4, 8)),
    block=st.sampled_from((16, 32, 128)),
    blocks=st.integers(1, 5),
    rows=st.integers(1, 9),
    outputs=st.integers(1, 40),
    largest=st.integers(0, 127),
    seed=st.integers(0, 1000),
)
@example(bits=2, block=128, blocks=73, rows=1, outputs=64, largest=3, seed=0)
@example(bits=4, block=128, blocks=73, rows=17, outputs=64, largest=127, seed=0)
@settings(max_examples=40)
def test_integers_with_a_lane_equal_the_runtime_and_the_plain_product(
    comparison: Comparison, bits: int, block: int, blocks: int, rows: int, outputs: int, largest: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    graph = comparison.new_graph()
    codes, data = weights(rng, outputs, blocks, block, bits), laned(rng, rows, blocks, block, largest)
    add_matmul(graph, graph.node("Cast", "images", to=TensorProto.FLOAT), codes, bits)
    found = comparison.check(graph, data, dtype=np.float32, varied=False)
    np.testing.assert_array_equal(found, data.astype(np.int64) @ codes.reshape(outputs, -1).astype(np.int64).T)


def test_weights_are_unpacked_low_bits_first(rng: np.random.Generator) -> None:
    for bits in (2, 4, 8):
        codes = weights(rng, 3, 2, 16, bits)
        np.testing.assert_array_equal(unpack_blocks(packed(codes, bits), (3, 32), bits, 16), codes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lane": 126}, "the data are not integers that reach 127 in every block, so they would be rounded"),
        ({"lane": 128}, "the data are not integers that reach 127 in every block"),
        ({"shift": 0.5}, "the data are not integers that reach 127 in every block"),
        ({"scale": 0.5}, "the scales are not all 1, so that sums would be rounded"),
        ({"zero_point": 0x77}, "zero points are uint8 of shape [1, 2]; 1 outputs of 3 blocks with 4 bits take 2 bytes"),
        ({"level": 0}, "accuracy_level is 0; only 4 is supported"),
        ({"blocks": 9000}, "a partial sum may reach 17145000, and float32 holds integers below 16777216"),
    ],
)
def test_what_the_runtime_would_round_is_refused(
    comparison: Comparison, graph: Graph, rng: np.random.Generator, change: dict[str, float], message: str
) -> None:
    blocks = int(change.get("blocks", 3))
    data = laned(rng, 2, blocks, 16, 0)
    data.reshape(2, blocks, 16)[1, 1, -1] = change.get("lane", LANE_CODE)
    codes = np.zeros((1, blocks, 16), np.int8)
    values = graph.node("Cast", "images", to=TensorProto.FLOAT)
    if "shift" in change:
        values = graph.node("Mul", values, graph.constant(np.full(data.shape[1], 0.5, np.float32)))
    zero_point = int(change.get("zero_point", zero_point_byte(4)))
    level = int(change.get("level", 4))
    add_matmul(graph, values, codes, 4, scale=change.get("scale", 1.0), level=level, zero_point=zero_point)
    reference = IntegerReference(comparison.read(graph.model(data, dtype=np.float32)))
    with pytest.raises(ModelFileError, match=r"node 'MatMulNBits_\d' \(MatMulNBits\): ") as caught:
        reference.run(data)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "bits", "block", "message"),
    [
        ((3, 32), 3, 16, "32 inputs in blocks of 16 with 3 bits are not supported"),
        ((3, 40), 4, 16, "40 inputs in blocks of 16 with 4 bits are not supported"),
        ((4, 32), 4, 16, r"uint8 of shape \[3, 2, 8\]; 4 outputs of 2 blocks of 16 inputs with 4 bits take uint8 of"),
    ],
)
def test_weights_that_do_not_fit_are_refused(shape: tuple[int, int], bits: int, block: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unpack_blocks(np.zeros((3, 2, 8), np.uint8), shape, bits, block)


def test_zero_points_have_to_be_written_out() -> None:
    """Without them, arm64 with dot product rounds whole rows of the data."""
    assert [zero_point_byte(bits) for bits in (2, 4, 8)] == [0xAA, 0x88, 0x80]
    check_zero_points(np.full((3, 2), 0x88, np.uint8), 3, 3, 4)
    with pytest.raises(ValueError, match="no zero points are given; without, some processors round whole rows"):
        check_zero_points(None, 3, 3, 4)
    with pytest.raises(ValueError, match=r"uint8 of shape \[3, 1\]; 3 outputs of 3 blocks with 4 bits take 6 bytes"):
        check_zero_points(np.full((3, 1), 0x88, np.uint8), 3, 3, 4)
