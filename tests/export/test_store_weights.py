"""Stored weights: the smallest type, and the same int8 weights after unpacking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from qil_deploy.export.emitter import QIL_DOMAIN, Emitter
from qil_deploy.export.options import Storage
from qil_deploy.export.passes.store_weights import packed_dtype
from qil_deploy.onnx_io.model_file import read_model
from qil_deploy.reference import IntegerReference

from .rewriting import stored

Array = NDArray[Any]


def weight_model(codes: Array, spread: Array, bits: int) -> ir.Model:
    """A convolution of uint8 images with the stored weights."""
    emitter = Emitter()
    image = ir.Value(name="image", shape=ir.Shape([1, codes.shape[1], 4, 4]), type=ir.TensorType(ir.DataType.UINT8))
    operands = [emitter.constant(codes, "codes"), emitter.constant(spread, "spread")]
    weight = emitter.op("Weight", operands, "w", domain=QIL_DOMAIN, attributes={"bits": bits})
    scale, zero = emitter.constant(np.float32(1), ""), emitter.constant(np.uint8(0), "")
    zeros = emitter.constant(np.zeros(len(codes), np.int8), "")
    scales = emitter.constant(np.ones(len(codes), np.float32), "w_scale")
    inputs = [image, scale, zero, weight, scales, zeros, scale, zero]
    result = emitter.op("QLinearConv", inputs, "y")
    result.shape, result.type = ir.Shape([1, len(codes), 2, 2]), ir.TensorType(ir.DataType.UINT8)
    return emitter.model([image], [result], {"": 25, QIL_DOMAIN: 1}, ir_version=13)


def store(codes: Array, spread: Array, bits: int, storage: Storage) -> ir.Model:
    return stored(weight_model(codes, spread, bits), storage)


def weights_of(model: ir.Model, folder: Path) -> Array:
    """Write, read and unpack."""
    model.graph.opset_imports.pop(QIL_DOMAIN)
    ir.save(model, folder / "model.onnx")
    return IntegerReference(read_model(folder / "model.onnx")).constants["w"]


@pytest.mark.parametrize(
    ("bits", "dtype"), [(2, "INT2"), (3, "INT4"), (4, "INT4"), (5, "INT8"), (6, "INT8"), (7, "INT8"), (8, "INT8")]
)
def test_the_smallest_type_that_holds_the_codes(bits: int, dtype: str) -> None:
    assert packed_dtype(bits).name == dtype


@pytest.mark.parametrize("storage", ["packed", "int8"])
@pytest.mark.parametrize("spread", ["one", "uniform", "per channel"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_unpacked_weights_are_codes_times_spread(bits: int, spread: str, storage: Storage, tmp_path: Path) -> None:
    rng = np.random.default_rng(bits)
    largest = 2 ** (bits - 1) - 1
    most = 127 // largest
    spreads = {
        "one": np.ones(5, np.int8),
        "uniform": np.full(5, most, np.int8),
        "per channel": rng.integers(1, most + 1, 5).astype(np.int8),
    }[spread]
    codes = rng.integers(-largest, largest + 1, (5, 3, 3, 3)).astype(np.int8)  # an odd number of nibbles
    weights = weights_of(store(codes, spreads, bits, storage), tmp_path)
    np.testing.assert_array_equal(weights, codes * spreads[:, None, None, None], strict=True)


def test_nodes_that_unpack() -> None:
    codes = np.array([1, -1, 0], np.int8).reshape(3, 1, 1, 1)

    def operators(spread: list[int], bits: int, storage: Storage = "packed") -> list[str]:
        model = store(codes, np.array(spread, np.int8), bits, storage)
        return [node.op_type for node in model.graph]

    assert operators([18] * 3, 4) == ["Cast", "Mul", "QLinearConv"]
    assert operators([1, 18, 18], 4) == ["Cast", "Mul", "QLinearConv"]
    assert operators([1] * 3, 4) == ["Cast", "QLinearConv"]
    assert operators([2] * 3, 5) == ["QLinearConv"]
    assert operators([18] * 3, 4, "int8") == ["QLinearConv"]


@pytest.mark.parametrize("storage", ["packed", "int8"])
def test_weights_that_are_all_zero_keep_their_name(storage: Storage, tmp_path: Path) -> None:
    codes = np.zeros((2, 1, 3, 3), np.int8)
    model = store(codes, np.ones(2, np.int8), 4, storage)
    assert ("w_packed" if storage == "packed" else "w") in model.graph.initializers
    np.testing.assert_array_equal(weights_of(model, tmp_path), codes, strict=True)


def test_computed_codes_are_refused() -> None:
    emitter = Emitter()
    image = ir.Value(name="image", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT8))
    ones = emitter.constant(np.ones(1, np.int8), "ones")
    weight = emitter.op("Weight", [image, ones], "w", domain=QIL_DOMAIN, attributes={"bits": 4})
    with pytest.raises(ValueError, match="'image' is computed, and has to be a constant"):
        stored(emitter.model([image], [weight], {"": 21, QIL_DOMAIN: 1}, 10), "packed")
