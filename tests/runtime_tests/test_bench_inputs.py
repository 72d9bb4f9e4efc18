"""Random inputs of every supported type, and refusals of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qil_deploy.errors import ModelFileError
from qil_deploy.runtime_tests.bench.inputs import random_inputs
from qil_deploy.runtime_tests.sessions import create_session


def identity_model(folder: Path, *tensors: tuple[str, int, list[int | str]]) -> Path:
    """Write a model that returns its inputs, of given names, element types and shapes."""
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name, _, _ in tensors]
    inputs = [helper.make_tensor_value_info(*tensor) for tensor in tensors]
    outputs = [helper.make_tensor_value_info(f"{name}_out", element, shape) for name, element, shape in tensors]
    opsets = [helper.make_opsetid("", 21)]
    path = folder / "identity.onnx"
    graph = helper.make_graph(nodes, "identity", inputs, outputs)
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    return path


def inputs_of(path: Path, *, batch: int = 3, seed: int = 0) -> dict[str, NDArray[Any]]:
    return random_inputs(create_session(path), batch=batch, seed=seed, path=path)


@pytest.mark.parametrize(
    ("element", "dtype", "lowest", "highest"),
    [
        (TensorProto.UINT8, np.uint8, 0, 255),
        (TensorProto.INT8, np.int8, -128, 127),
        (TensorProto.INT32, np.int32, 0, 1),
        (TensorProto.INT64, np.int64, 0, 1),
        (TensorProto.BOOL, np.bool_, 0, 1),
    ],
)
def test_integer_inputs_cover_their_range(tmp_path: Path, element: int, dtype: type, lowest: int, highest: int) -> None:
    x = inputs_of(identity_model(tmp_path, ("x", element, ["batch", 64, 64])))["x"]
    assert (x.dtype, x.shape) == (np.dtype(dtype), (3, 64, 64))
    assert (x.min(), x.max()) == (lowest, highest)


@pytest.mark.parametrize(
    ("element", "dtype"),
    [(TensorProto.FLOAT, np.float32), (TensorProto.FLOAT16, np.float16), (TensorProto.DOUBLE, np.float64)],
)
def test_float_inputs_are_seeded(tmp_path: Path, element: int, dtype: type) -> None:
    path = identity_model(tmp_path, ("x", element, ["n", 5]))
    x = inputs_of(path, seed=1)["x"]
    assert (x.dtype, x.shape) == (np.dtype(dtype), (3, 5))
    np.testing.assert_array_equal(inputs_of(path, seed=1)["x"], x)
    assert (inputs_of(path, seed=2)["x"] != x).any()


def test_each_of_several_inputs_is_drawn(tmp_path: Path) -> None:
    path = identity_model(tmp_path, ("image", TensorProto.UINT8, ["n", 4]), ("mask", TensorProto.FLOAT, [3, 2]))
    found = inputs_of(path)
    assert {name: (array.dtype, array.shape) for name, array in found.items()} == {
        "image": (np.dtype(np.uint8), (3, 4)),
        "mask": (np.dtype(np.float32), (3, 2)),
    }


def test_a_model_with_a_fixed_batch_takes_that_batch_only(tmp_path: Path) -> None:
    path = identity_model(tmp_path, ("x", TensorProto.FLOAT, [2, 5]))
    assert inputs_of(path, batch=2)["x"].shape == (2, 5)
    with pytest.raises(ModelFileError, match=r"input 'x' of .* has shape \[2, 5\]; a batch of 3 needs"):
        inputs_of(path, batch=3)


def test_another_free_dimension_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="all others fixed"):
        inputs_of(identity_model(tmp_path, ("x", TensorProto.FLOAT, ["n", 3, "height", 8])))


def test_an_input_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"has shape \[3, 65536, 65536\]: too large; use a smaller batch"):
        inputs_of(identity_model(tmp_path, ("x", TensorProto.FLOAT, ["n", 65536, 65536])))


def test_an_input_type_that_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"is a tensor\(string\); inputs can be drawn for"):
        inputs_of(identity_model(tmp_path, ("x", TensorProto.STRING, ["n"])))
