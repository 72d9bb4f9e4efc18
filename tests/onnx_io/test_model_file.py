"""Reading ONNX files without `onnx`: the result for a valid file, and the error for an invalid one."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qil_deploy.errors import ModelFileError
from qil_deploy.onnx_io.model_file import UNREAD, OnnxFile, TensorInfo, read_model

NUMPY_TYPES = [
    "float16", "float32", "float64", "bool",
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
]  # fmt: skip
PACKED_TYPES = {
    "int4": (TensorProto.INT4, -8, 7),
    "uint4": (TensorProto.UINT4, 0, 15),
    "int2": (TensorProto.INT2, -2, 1),
    "uint2": (TensorProto.UINT2, 0, 3),
}


def model_with(
    *initializers: onnx.TensorProto,
    nodes: tuple[onnx.NodeProto, ...] = (),
    elem_type: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    nodes = nodes or (helper.make_node("Identity", ["x"], ["y"], name="copy"),)
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", elem_type, ["batch", 3, None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        list(initializers),
    )
    opsets = [helper.make_opsetid("", 25), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=13)


def write(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def read(folder: Path, model: onnx.ModelProto) -> OnnxFile:
    return read_model(write(folder, model))


def sample(dtype: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[Any]:
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.startswith("float"):
        return rng.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    values = rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    values.flat[:2] = limits.min, limits.max
    return values


@pytest.mark.parametrize("raw", [True, False], ids=["raw_data", "typed_field"])
@pytest.mark.parametrize("dtype", NUMPY_TYPES)
def test_every_numpy_type_survives(tmp_path: Path, rng: np.random.Generator, dtype: str, raw: bool) -> None:
    values = sample(dtype, (2, 3), rng)
    number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    content = values.tobytes() if raw else values.ravel()
    file = read(tmp_path, model_with(helper.make_tensor("w", number, values.shape, content, raw=raw)))
    assert file.initializers["w"].dtype == np.dtype(dtype)
    np.testing.assert_array_equal(file.initializers["w"], values, strict=True)
    assert file.stored_types == {"w": dtype}


@pytest.mark.parametrize("raw", [True, False], ids=["raw_data", "typed_field"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 8, 9])
@pytest.mark.parametrize("dtype", PACKED_TYPES)
def test_packed_types_are_unpacked_at_odd_sizes_too(
    tmp_path: Path, rng: np.random.Generator, dtype: str, count: int, raw: bool
) -> None:
    number, low, high = PACKED_TYPES[dtype]
    values = rng.integers(low, high, count, endpoint=True).astype("int8" if low else "uint8")
    if count > 1:
        values[:2] = low, high
    tensor = helper.make_tensor("w", number, [count], values)  # fills int32_data
    if raw:
        packed = numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(number)), "w")
        assert packed.data_type == number
        assert packed.HasField("raw_data")
        tensor = packed
    file = read(tmp_path, model_with(tensor))
    np.testing.assert_array_equal(file.initializers["w"], values, strict=True)
    assert file.stored_types == {"w": dtype}


def test_low_bits_come_first_and_carry_a_sign(tmp_path: Path) -> None:
    int4 = helper.make_tensor("a", TensorProto.INT4, [3], bytes([0x78, 0x0F]), raw=True)
    int2 = helper.make_tensor("b", TensorProto.INT2, [5], bytes([0b11_10_01_00, 0b10]), raw=True)
    file = read(tmp_path, model_with(int4, int2))
    np.testing.assert_array_equal(file.initializers["a"], np.array([-8, 7, -1], np.int8), strict=True)
    np.testing.assert_array_equal(file.initializers["b"], np.array([0, 1, -2, -1, -2], np.int8), strict=True)


def test_initializers_are_read_only(tmp_path: Path) -> None:
    tensors = [numpy_helper.from_array(np.arange(3, dtype=np.int8), "a")]
    tensors.append(helper.make_tensor("b", TensorProto.INT4, [3], [1, 2, 3]))
    for values in read(tmp_path, model_with(*tensors)).initializers.values():
        assert not values.flags.writeable


def test_scalars_and_empty_tensors_keep_their_shape(tmp_path: Path) -> None:
    tensors = [
        numpy_helper.from_array(np.array(2.5, np.float32), "scalar"),
        numpy_helper.from_array(np.zeros((2, 0)), "empty"),
    ]
    file = read(tmp_path, model_with(*tensors))
    assert file.initializers["scalar"].shape == ()
    assert file.initializers["scalar"] == np.float32(2.5)
    assert file.initializers["empty"].shape == (2, 0)


def test_everything_about_a_model_written_by_onnx(tmp_path: Path) -> None:
    value = np.array([1, 2], np.int32)
    node = helper.make_node(
        "Thing",
        ["x", "", "w"],
        ["y", ""],
        name="thing",
        domain="com.microsoft",
        whole=3,
        real=0.5,
        text="grün",
        wholes=[1, -2],
        reals=[0.5, 2.0],
        texts=["a", "b"],
        tensor=numpy_helper.from_array(value),
    )
    model = model_with(numpy_helper.from_array(value, "w"), nodes=(node,))
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.INT32, [2]))
    helper.set_model_props(model, {"bits": "4", "name": "grün"})
    file = read(tmp_path, model)

    assert file.ir_version == 13
    assert file.opsets == {"": 25, "com.microsoft": 1}
    assert file.metadata == {"bits": "4", "name": "grün"}
    assert file.inputs == (TensorInfo("x", "float32", ("batch", 3, None)),)
    assert file.outputs == (TensorInfo("y", "float32", None),)
    (read_node,) = file.nodes
    assert (read_node.op_type, read_node.domain, read_node.name) == ("Thing", "com.microsoft", "thing")
    assert (read_node.inputs, read_node.outputs) == (("x", "", "w"), ("y", ""))
    attributes = dict(read_node.attributes)
    np.testing.assert_array_equal(attributes.pop("tensor"), value, strict=True)
    assert attributes == {
        "whole": 3, "real": 0.5, "text": "grün", "wholes": [1, -2], "reals": [0.5, 2.0], "texts": ["a", "b"],
    }  # fmt: skip


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"nothing\.onnx does not exist; name an ONNX file"):
        read_model(tmp_path / "nothing.onnx")
    with pytest.raises(ModelFileError, match="is a folder; name an ONNX file"):
        read_model(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\x00", b"PK\x03\x04" * 99, b"not an ONNX file\n", bytes(1000), b"\xff" * 64]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"model\.onnx.*(not an ONNX file|truncated)"):
        read_model(path)


def test_every_cut_is_noticed(tmp_path: Path, rng: np.random.Generator) -> None:
    weights = numpy_helper.from_array(rng.integers(-63, 64, (4, 5)).astype(np.int8), "w")
    content = model_with(weights, helper.make_tensor("p", TensorProto.INT4, [3], [1, 2, 3])).SerializeToString()
    # The opsets come last in a file by `onnx`: one opset less is a whole file again, which says less.
    one_opset_less = len(content) - len(helper.make_opsetid("com.microsoft", 1).SerializeToString()) - 2
    path = tmp_path / "model.onnx"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        if length == one_opset_less:
            assert read_model(path).opsets == {"": 25}
            continue
        with pytest.raises(ModelFileError, match="truncated"):
            read_model(path)


@given(st.data())
def test_flipped_bytes_are_read_or_refused_but_never_crash(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    weights = numpy_helper.from_array(np.arange(12, dtype=np.int16).reshape(3, 4), "w")
    content = bytearray(
        model_with(weights, helper.make_tensor("p", TensorProto.INT2, [5], [1, 0, -1, -2, 1])).SerializeToString()
    )
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "flipped.onnx"
    path.write_bytes(bytes(content))
    try:
        assert isinstance(read_model(path), OnnxFile)
    except ModelFileError as error:
        assert "flipped.onnx" in str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize("name", ["thing", "Thing", "first", "second"])
def test_names_that_are_not_text_are_refused(tmp_path: Path, name: str) -> None:
    content = model_with(nodes=(helper.make_node("Thing", ["first"], ["second"], name="thing"),)).SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(content.replace(name.encode(), b"\xff" + name.encode()[1:]))
    for left_out in (None, list[str]()):
        with pytest.raises(ModelFileError, match=r"model\.onnx is damaged: it holds a name that is not UTF-8"):
            read_model(path, left_out=left_out)


def test_what_is_not_supported_may_be_left_out(tmp_path: Path) -> None:
    branch = helper.make_graph([], "branch", [], [])
    node = helper.make_node("If", ["x"], ["y"], name="choose", then_branch=branch, else_branch=branch)
    texts = tensor(TensorProto.STRING, [1], string_data=[b"a"])
    left_out: list[str] = []
    file = read_model(
        write(tmp_path, model_with(texts, nodes=(node,), elem_type=TensorProto.STRING)), left_out=left_out
    )
    assert file.nodes[0].attributes == {}
    assert (file.initializers, file.stored_types) == ({}, {"w": UNREAD})
    assert file.inputs[0].dtype == UNREAD
    assert ["element type number 8" in sentence or "is a subgraph" in sentence for sentence in left_out] == [True] * 4


def tensor(data_type: int, dims: list[int], **fields: Any) -> onnx.TensorProto:  # noqa: ANN401 - any field
    return TensorProto(name="w", data_type=data_type, dims=dims, **fields)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (tensor(TensorProto.INT8, [2, 3], raw_data=b"12345"), "holds 5 bytes where 6 belong"),
        (tensor(TensorProto.FLOAT, [2], raw_data=bytes(9)), "holds 9 bytes where 8 belong"),
        (tensor(TensorProto.INT4, [3], raw_data=bytes(3)), "holds 3 bytes where 2 belong"),
        (tensor(TensorProto.INT2, [5], raw_data=bytes(1)), "holds 1 bytes where 2 belong"),
        (tensor(TensorProto.INT8, [2**30, 2**30], raw_data=b"1"), f"holds 1 bytes where {2**60} belong"),
        (tensor(TensorProto.FLOAT, [3], float_data=[1, 2]), "holds 2 entries of float_data where 3 belong"),
        (tensor(TensorProto.INT4, [3], int32_data=[1]), "holds 1 entries of int32_data where 2 belong"),
        (tensor(TensorProto.FLOAT, [3]), "holds 0 entries of float_data where 3 belong"),
        (tensor(TensorProto.INT8, [1], int32_data=[200]), "holds values from 200 to 200, which int8 cannot"),
        (tensor(TensorProto.INT4, [1], int32_data=[256]), "holds values from 256 to 256, which int4 cannot"),
        (tensor(TensorProto.INT8, [1], float_data=[1]), "data in float_data; use raw_data or int32_data"),
        (tensor(TensorProto.INT8, [1], raw_data=b"1", int32_data=[1]), "use raw_data or int32_data alone"),
        (tensor(TensorProto.INT8, [-1], raw_data=b""), r"shape \[-1\]; sizes must be from 0"),
        (tensor(TensorProto.INT8, [2**62], raw_data=b""), "sizes must be from 0"),
        (tensor(TensorProto.INT8, [0, 2**31 - 1, 2**31 - 1], raw_data=b""), "too large for an array"),
        (tensor(TensorProto.INT8, [1] * 33, raw_data=b"1"), "has 33 dimensions; at most 32"),
        (tensor(TensorProto.BFLOAT16, [1], raw_data=b"12"), "element type number 16; supported are 1"),
        (tensor(TensorProto.STRING, [1], string_data=[b"a"]), "element type number 8"),
        (tensor(TensorProto.INT8, [1], data_location=TensorProto.EXTERNAL), "external data"),
        (tensor(TensorProto.INT8, [1], segment=TensorProto.Segment(begin=0, end=1)), "one segment"),
    ],
)  # fmt: skip
def test_bad_tensors_are_refused(tmp_path: Path, bad: onnx.TensorProto, message: str) -> None:
    with pytest.raises(ModelFileError, match=rf"model\.onnx: initializer 'w' .*{message}"):
        read(tmp_path, model_with(bad))


def test_a_size_without_bytes_allocates_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, model_with(tensor(TensorProto.INT2, [2**31 - 1], raw_data=b"1")))
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError, match="holds 1 bytes"):
            read_model(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_external_data_written_by_onnx_is_refused(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.zeros(4096, np.float32), "w")
    path = tmp_path / "model.onnx"
    onnx.save(model_with(weights), path, save_as_external_data=True, location="weights.bin")
    with pytest.raises(ModelFileError, match=r"'w' is stored in another file \(external data\)"):
        read_model(path)


def test_subgraphs_functions_and_sparse_tensors_are_refused(tmp_path: Path) -> None:
    branch = helper.make_graph([], "branch", [], [])
    node = helper.make_node("If", ["x"], ["y"], name="choose", then_branch=branch, else_branch=branch)
    with pytest.raises(ModelFileError, match=r"of node 'choose' \(If\) is a subgraph"):
        read(tmp_path, model_with(nodes=(node,)))

    with_function = model_with()
    with_function.functions.add(name="f", domain="mine")
    with pytest.raises(ModelFileError, match="functions are not supported"):
        read(tmp_path, with_function)

    with_sparse = model_with()
    with_sparse.graph.sparse_initializer.add()
    with pytest.raises(ModelFileError, match="sparse initializers are not supported"):
        read(tmp_path, with_sparse)


def test_duplicate_initializers_are_refused(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.zeros(1, np.float32), "w")
    with pytest.raises(ModelFileError, match="two initializers are called 'w'"):
        read(tmp_path, model_with(weights, weights))


def test_inputs_of_unknown_type_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="graph input or output 'x' has element type number 8"):
        read(tmp_path, model_with(elem_type=TensorProto.STRING))


def test_attribute_without_a_type_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Thing", ["x"], ["y"], name="thing", value=1)
    node.attribute[0].type = onnx.AttributeProto.UNDEFINED
    with pytest.raises(ModelFileError, match=r"attribute 'value' of node 'thing' \(Thing\) has type number 0"):
        read(tmp_path, model_with(nodes=(node,)))


def test_a_node_without_outputs_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Thing", ["x"], [], name="thing")
    for left_out in (None, list[str]()):
        with pytest.raises(ModelFileError, match=r"node 'thing' \(Thing\) has no output"):
            read_model(write(tmp_path, model_with(nodes=(node,))), left_out=left_out)
