"""Multiplications counted by hand, and by `inspect`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from qil_deploy.errors import ModelFileError
from qil_deploy.runtime_tests.bench.macs import arithmetic_of, count_macs
from qil_deploy.runtime_tests.exported_model import read_exported_model
from qil_deploy.runtime_tests.layers import describe_layers

WriteModel = Callable[..., Path]
ZOO = Path(__file__).parents[2] / "zoo" / "fashion_mnist"


def write(
    path: Path, nodes: list[NodeProto], shape: list[int | str], weights: dict[str, NDArray[Any]], rank: int | None = 2
) -> Path:
    free = None if rank is None else [None] * rank
    graph = helper.make_graph(
        nodes,
        "m",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, free)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    return path


def floats(*shape: int) -> NDArray[np.float32]:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("node", "shape", "weights", "macs"),
    [
        (helper.make_node("MatMul", ["x", "w"], ["y"]), ["n", 12], floats(12, 5), 12 * 5),
        (helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), ["n", 12], floats(5, 12), 12 * 5),
        (helper.make_node("Gemm", ["x", "w"], ["y"]), ["n", 12], floats(12, 5), 12 * 5),
        (helper.make_node("MatMul", ["x", "w"], ["y"]), [1, 3, 12], floats(12, 5), 3 * 12 * 5),
        (
            helper.make_node("Conv", ["x", "w"], ["y"], group=2, strides=[2, 2], pads=[1, 1, 1, 1]),
            ["n", 4, 8, 8],
            floats(6, 2, 3, 3),
            6 * 4 * 4 * 2 * 9,
        ),
        (
            helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2]),
            ["n", 4, 8, 8],
            floats(4, 6, 2, 2),
            4 * 8 * 8 * 6 * 4,
        ),
    ],
)
def test_layers_are_counted_as_by_hand(
    tmp_path: Path, node: NodeProto, shape: list[int | str], weights: NDArray[Any], macs: int
) -> None:
    path = write(tmp_path / "m.onnx", [node], shape, {"w": weights}, len(shape))
    assert count_macs(path) == macs
    assert arithmetic_of(path) == "float32"


@pytest.mark.parametrize("name", ["w4a4", "w2a2"])
def test_our_files_are_counted_as_inspect_counts_them(name: str) -> None:
    path = ZOO / f"{name}.onnx"
    assert count_macs(path) == sum(layer.macs for layer in describe_layers(read_exported_model(path)))
    assert arithmetic_of(path) == "int8"


def test_float_and_integer_files_of_one_network_have_as_many(write_model: WriteModel) -> None:
    hidden = 4 * 8 * 8
    expected = hidden * 3 * 9 + hidden * 4 * 9 + (hidden // 4) * 5
    for form in ("qlinear", "qdq"):
        assert count_macs(write_model(format=form)) == expected
        assert arithmetic_of(write_model(format=form)) == "int8"
    assert count_macs(write_model(format="float", input="float")) == 3 * 8 * 8 * 5


def test_a_network_that_is_partly_quantized_is_called_mixed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    path = write(tmp_path / "m.onnx", nodes, ["n", 12], {"w": np.ones((12, 7), np.int8), "v": floats(7, 5)})
    assert count_macs(path) == 12 * 7 + 7 * 5
    assert arithmetic_of(path) == "mixed"


def test_a_network_without_weights_has_none(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], ["n", 3], {})
    assert count_macs(path) == 0
    assert arithmetic_of(path) is None


def test_operators_that_are_not_counted_are_named(tmp_path: Path) -> None:
    node = helper.make_node("Einsum", ["x", "w"], ["y"], equation="nk,km->nm")
    path = write(tmp_path / "m.onnx", [node], ["n", 12], {"w": floats(12, 5)})
    with pytest.raises(ModelFileError, match="has Einsum, whose multiplications are not counted"):
        count_macs(path)


def test_shapes_that_are_not_known_are_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    path = write(tmp_path / "m.onnx", nodes, ["n", "length", 12], {"w": floats(12, 5)}, 3)
    with pytest.raises(ModelFileError, match=r"does not say which shapes 'product' \(MatMul\) reads and makes"):
        count_macs(path)
