"""The emitter: shared constants and unique names."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from qil_deploy.export.emitter import Emitter, integer, real


def image() -> ir.Value:
    return ir.Value(name="image", shape=ir.Shape(["batch", 2]), type=ir.TensorType(ir.DataType.FLOAT))


def small_model() -> ir.Model:
    """(image + 1) * [1, 2], with an unused initializer and one in int4."""
    emitter, x = Emitter(), image()
    emitter.constant(np.float32(7), "unread")
    y = emitter.op("Add", [x, emitter.constant(np.float32(1), "")], "sum")
    packed = ir.Tensor(np.array([1, 2], ml_dtypes.int4), dtype=ir.DataType.INT4, name="packed")
    factor = emitter.op("Cast", [emitter.tensor(packed)], "factor", attributes={"to": ir.DataType.FLOAT})
    z = emitter.op("Mul", [y, factor], "product", node_name="times")
    return emitter.model([x], [z], {"": 21}, ir_version=10)


def test_equal_scalars_and_zeros_are_stored_once() -> None:
    emitter = Emitter()
    assert emitter.constant(np.float32(0.1), "a") is emitter.constant(np.float32(0.1), "b")
    assert emitter.constant(np.zeros(3, np.int8), "a") is emitter.constant(np.zeros(3, np.int8), "b")
    assert sorted(emitter.initializers) == ["float32_0.100000001", "int8_0x3"]


def test_constants_of_other_type_shape_or_value_are_not_shared() -> None:
    emitter = Emitter()
    arrays: list[np.ndarray | np.generic] = [
        np.uint8(0),
        np.int8(0),
        np.int32(0),
        np.zeros(1, np.int8),
        np.zeros(3, np.int8),
        np.zeros((3, 1), np.int8),
    ]
    arrays += [np.float32(1), np.float32(np.nextafter(np.float32(1), np.float32(2)))]
    values = [emitter.constant(array, "") for array in arrays]
    assert len({id(value) for value in values}) == len(arrays)
    for value, array in zip(values, arrays, strict=True):
        assert value.const_value is not None
        np.testing.assert_array_equal(value.const_value.numpy(), array, strict=True)


@pytest.mark.parametrize(
    "arrays",
    [
        [np.float32(0.0), np.float32(-0.0)],
        [np.zeros(4, np.float32), -np.zeros(4, np.float32), np.array([0.0, -0.0, 0.0, 0.0], np.float32)],
        [np.array(bits, np.uint32).view(np.float32)[()] for bits in (0x7FC00000, 0x7FC00001, 0xFFC00000)],
        [np.int64(2**53), np.int64(2**53 + 1), np.int64(2**60), np.int64(2**60 + 1)],
        [np.float64(0.1), np.nextafter(np.float64(0.1), np.float64(1))],
        [np.bool_(True), np.int8(1), np.float16(1)],
    ],
    ids=["signed zeros", "vectors of signed zeros", "NaNs", "large integers", "doubles", "types"],
)
def test_constants_that_look_alike_keep_their_bits(arrays: list[np.ndarray | np.generic]) -> None:
    emitter = Emitter()
    values = [emitter.constant(array, "") for array in arrays]
    assert len(emitter.initializers) == len(arrays)
    for value, array in zip(values, arrays, strict=True):
        assert emitter.constant(array, "") is value
        assert value.const_value is not None
        stored = value.const_value.numpy()
        assert (stored.dtype, stored.shape, stored.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_arrays_keep_their_own_name_even_where_they_are_equal() -> None:
    emitter = Emitter()
    for name in ("a", "b"):
        emitter.constant(np.ones(3, np.int8), name)
    assert sorted(emitter.initializers) == ["a", "b"]


def test_two_initializers_of_one_name_are_refused() -> None:
    emitter = Emitter()
    emitter.constant(np.ones(3, np.int8), "weights")
    with pytest.raises(ValueError, match="two initializers are called 'weights'"):
        emitter.constant(np.full(3, 2, np.int8), "weights")


def test_a_model_holds_what_its_nodes_read() -> None:
    model = small_model()
    assert sorted(model.graph.initializers) == ["float32_1", "packed"]
    assert [node.name for node in model.graph] == ["sum", "factor", "times"]
    assert model.graph.opset_imports == {"": 21}
    assert model.ir_version == 10


def test_attributes_are_read_by_type() -> None:
    node = ir.node("Op", [], attributes={"count": 3, "share": 0.5})
    assert (integer(node, "count"), real(node, "share")) == (3, 0.5)
