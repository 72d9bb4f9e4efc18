"""Valid protobuf messages that are no valid models: their demands are refused before they are met."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from .conftest import CLASSES, ZOO, edit_metadata

if TYPE_CHECKING:
    from tests.command_line import Outcome

Damage = Callable[[onnx.ModelProto], None]


def _convolution(model: onnx.ModelProto) -> onnx.NodeProto:
    found: onnx.NodeProto = next(node for node in model.graph.node if node.op_type == "QLinearConv")
    return found


def _initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    found: onnx.TensorProto = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    return found


def _packed(model: onnx.ModelProto) -> onnx.TensorProto:
    found: onnx.TensorProto = next(tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT2)
    return found


def _external(location: str) -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        tensor = _initializer(model, _convolution(model).input[3])
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return damage


def _shorter(model: onnx.ModelProto) -> None:
    _packed(model).raw_data = _packed(model).raw_data[:-1]


def _longer(model: onnx.ModelProto) -> None:
    _packed(model).raw_data += b"\0"


def _huge_initializer(model: onnx.ModelProto) -> None:
    _initializer(model, _convolution(model).input[3]).dims[:] = [2**31 - 1, 2**31 - 1]


def _size(size: int) -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        dimensions = model.graph.input[0].type.tensor_type.shape.dim
        dimensions[2].dim_value = dimensions[3].dim_value = size
        pixels = {"channels": 1, "height": size, "width": size, "scale": 0.01, "zero_point": 73}
        edit_metadata(model, preprocessing=pixels)

    return damage


def _batch(batch: int) -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        for info in (model.graph.input[0], model.graph.output[0]):
            info.type.tensor_type.shape.dim[0].dim_value = batch
        edit_metadata(model, batch=batch)

    return damage


def _pads(count: int) -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        (pads,) = [attribute for attribute in _convolution(model).attribute if attribute.name == "pads"]
        pads.ints[:] = [count] * 4

    return damage


def _expand(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([2**20, 2**20]), "size"))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1), np.int8), "value"))
    model.graph.node.insert(0, helper.make_node("Expand", ["value", "size"], ["expanded"], name="expand"))


def _doubled(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1024), np.int8), "d0"))
    for index in range(40):
        node = helper.make_node("Concat", [f"d{index}"] * 2, [f"d{index + 1}"], name=f"double_{index}", axis=0)
        model.graph.node.insert(index, node)


def _many_constants(model: onnx.ModelProto) -> None:
    """A hundred constants of 32 MiB, each well within any limit for one."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([2**12, 2**13]), "size"))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1), np.int8), "value"))
    for index in range(100):
        node = helper.make_node("Expand", ["value", "size"], [f"expanded_{index}"], name=f"expand_{index}")
        model.graph.node.insert(0, node)


def _many_images(model: onnx.ModelProto) -> None:
    """The image repeated a million times, concatenated, before the network."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([2**20, 1, 1, 1]), "million"))
    model.graph.node.insert(0, helper.make_node("Expand", ["image", "million"], ["images"], name="expand"))
    _convolution(model).input[0] = "images"


def _without_standard_operators(model: onnx.ModelProto) -> None:
    del model.opset_import[:]
    model.opset_import.add(domain="com.microsoft", version=1)


def _schema(schema: object) -> Damage:
    return lambda model: edit_metadata(model, schema=schema)


def _long_name(model: onnx.ModelProto) -> None:
    model.graph.node[0].name = model.graph.node[0].input[0] = "\x1b[2J" * 100_000


def _cycle(model: onnx.ModelProto) -> None:
    for source, target in (("a", "b"), ("b", "a")):
        model.graph.node.append(helper.make_node("Identity", [source], [target], name=f"to_{target}"))


def _cycle_through_the_network(model: onnx.ModelProto) -> None:
    last = [node for node in model.graph.node if node.op_type == "QLinearConv"][-1]
    _convolution(model).input[0] = last.output[0]


def _twice(model: onnx.ModelProto) -> None:
    node = helper.make_node("Identity", ["image"], list(_convolution(model).output), name="again")
    model.graph.node.insert(0, node)


def _foreign(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="example.org", version=1)
    model.graph.node.insert(0, helper.make_node("Evil", ["image"], ["evil"], name="evil", domain="example.org"))


def _subgraph(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([], "branch", [], [])
    node = helper.make_node("If", ["image"], ["y"], name="choose", then_branch=branch, else_branch=branch)
    model.graph.node.insert(0, node)


def _operator_set(version: int) -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = version

    return damage


def _file_format(model: onnx.ModelProto) -> None:
    model.ir_version = 99


def _scale(value: float) -> Damage:
    def damage(model: onnx.ModelProto) -> None:
        tensor = _initializer(model, _convolution(model).input[1])
        tensor.raw_data = np.float32(value).tobytes()

    return damage


def _no_metadata(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


# Damage, and what `inspect` and `verify` say of it.
MODELS: dict[str, tuple[Damage, str]] = {
    "external data above": (_external("../../../../../../etc/passwd"), "external data"),
    "external data elsewhere": (_external("/etc/passwd"), "external data"),
    "external data missing": (_external("absent.bin"), "external data"),
    "INT2 too short": (_shorter, "bytes where"),
    "INT2 too long": (_longer, "bytes where"),
    "initializer of exabytes": (_huge_initializer, "bytes where"),
    "image of a gigapixel": (_size(2**15), "values; at most"),
    "image of an exapixel": (_size(2**30), "values; at most"),
    "no image in a batch": (_batch(0), "'batch' is 0"),
    "batch of terabytes": (_batch(2**30), "values; at most"),
    "wide padding": (_pads(10**5), "(QLinearConv): it takes"),
    "endless padding": (_pads(2**40), "(QLinearConv): it takes"),
    "constant of a terabyte": (
        _expand,
        "(Expand): it takes 1.1e+12 bytes, which, with what is already held, exceeds",
    ),
    "constant doubled forty times": (_doubled, "(Concat): it takes"),
    "constants of gigabytes together": (_many_constants, "(Expand): it takes"),
    "images of gigabytes": (_many_images, "it takes"),
    "no standard operator set": (_without_standard_operators, "names no version of the standard operator set"),
    "schema of the future": (_schema(2), "has schema 2; this version of qil_deploy reads 1"),
    "schema that is no number": (_schema("1"), "has schema '1'; this version of qil_deploy reads 1"),
    "endless name": (_long_name, "(700,002 characters)"),
    "cycle beside the network": (_cycle, "nothing before it produces its input|not acyclic"),
    "cycle through the network": (_cycle_through_the_network, "nothing before it produces its input|not acyclic"),
    "two nodes make one tensor": (_twice, "exists already|Duplicate definition"),
    "operator of somebody else": (_foreign, "Evil"),
    "subgraph": (_subgraph, "is a subgraph"),
    "operator set of the future": (_operator_set(999), "opset|Opset|cannot load"),
    "negative operator set": (_operator_set(-5), "cannot load"),
    "file format of the future": (_file_format, "IR version|cannot load"),
    "NaN for a scale": (_scale(np.nan), "the scale nan; scales must be positive and finite|cannot load"),
    "zero for a scale": (_scale(0), "the scale 0; scales must be positive and finite"),
    "infinity for a scale": (_scale(np.inf), "the scale inf; scales must be positive and finite"),
    "no metadata": (_no_metadata, "carries no 'qil_deploy' metadata"),
}

# What ONNX Runtime runs without a complaint, for as long as it takes.
MEASURABLE = ("image of a gigapixel", "NaN for a scale", "zero for a scale", "infinity for a scale", "no metadata")


@pytest.fixture
def damaged(content: bytes, tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes one of `MODELS`."""

    def write(name: str) -> Path:
        model = onnx.load_from_string(content)
        MODELS[name][0](model)
        path = tmp_path / "hostile.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return write


@pytest.mark.parametrize("name", MODELS)
def test_inspect_and_verify_say_what_is_wrong(
    damaged: Callable[[str], Path], images: Path, refused: Callable[..., str], name: str
) -> None:
    path = damaged(name)
    parts = MODELS[name][1].split("|")
    for command in (["inspect", path], ["verify", path, "--data", images]):
        sentence = refused(*command)
        assert str(path) in sentence
        assert any(part in sentence for part in parts), sentence
        assert len(sentence) <= 1000


@pytest.mark.parametrize("name", MODELS)
def test_doctor_and_bench_end(damaged: Callable[[str], Path], ends: Callable[..., Outcome], name: str) -> None:
    """They take any ONNX file, so that some of these are no concern of theirs."""
    path = damaged(name)
    assert ends("doctor", path).code in (0, 1)
    if name not in MEASURABLE:
        ends("bench", path, "--repeats", 1, "--warmup", 0, "--caches", "warm")


def test_golden_vectors_do_not_make_a_hostile_model_run(
    damaged: Callable[[str], Path], golden: Path, refused: Callable[..., str]
) -> None:
    assert "of another file" in refused("verify", damaged("wide padding"), "--golden", golden)


def test_float_baselines_are_tried_apart(tmp_path: Path, images: Path, refused: Callable[..., str]) -> None:
    """No reference computes them: ONNX Runtime does, in a process of its own with limited memory."""
    model = onnx.load(ZOO / "float.onnx")
    edit_metadata(model, class_names=list(CLASSES), data=None)
    _doubled(model)
    path = tmp_path / "hostile.onnx"
    path.write_bytes(model.SerializeToString())
    for command in (["inspect", path], ["verify", path, "--data", images]):
        assert f"{path} takes more memory than a file and an input of their sizes may" in refused(*command)


def test_weights_behind_a_long_chain_and_behind_many_ways(
    content: bytes, tmp_path: Path, ends: Callable[..., Outcome]
) -> None:
    """The chain is deeper than Python's recursion limit, and 2**60 paths are not walked one by one."""
    model = onnx.load_from_string(content)
    convolution = _convolution(model)
    source, position = convolution.input[3], list(model.graph.node).index(convolution)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1, 1, 1), np.int32), "zero"))
    nodes = [helper.make_node("Identity", [source if i == 0 else f"i{i - 1}"], [f"i{i}"]) for i in range(1500)]
    nodes += [helper.make_node("Cast", ["i1499"], ["wide"], to=TensorProto.INT32)]
    nodes += [helper.make_node("Mul", ["wide", "zero"], ["s0"])]
    nodes += [helper.make_node("Add", [f"s{i}", f"s{i}"], [f"s{i + 1}"]) for i in range(60)]
    nodes += [helper.make_node("Cast", ["s60"], ["narrow"], to=TensorProto.INT8)]
    convolution.input[3] = "narrow"
    for index, node in enumerate(nodes):
        node.name = node.output[0]
        model.graph.node.insert(position + index, node)
    path = tmp_path / "chain.onnx"
    path.write_bytes(model.SerializeToString())
    assert ends("inspect", path).code == 0
    assert ends("doctor", path).code in (0, 1)
