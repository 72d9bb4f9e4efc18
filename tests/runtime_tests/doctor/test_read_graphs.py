"""Graphs in graphs: tensors from outer ones, depth, and damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qil_deploy.onnx_io.schema import parse_message
from qil_deploy.runtime_tests.doctor import diagnose
from qil_deploy.runtime_tests.doctor.graphs import Graph
from qil_deploy.runtime_tests.doctor.read_graphs import Unread, read_graphs

from .graph_files import CONVOLUTION, build_model, constants, write_graph

NESTED = """
    codes = QuantizeLinear(x, s, zero)
    y = If(yes)<
        then_branch = one () => (float[4] a) {
            a = If(no)<
                then_branch = two () => (float[4] b) {
                    value = DequantizeLinear(codes, s, zero)
                    b = Mul(value, s)
                },
                else_branch = three () => (float[4] c) { c = Identity(x) }
            >
        },
        else_branch = four () => (float[4] d) { d = Relu(x) }
    >
"""
NESTED_X = "float[4] x, bool yes, bool no"


def read(path: Path) -> tuple[list[Graph], Unread]:
    unread = Unread()
    return read_graphs(path, unread), unread


def test_graphs_in_graphs_see_what_is_around_them(tmp_path: Path) -> None:
    values = {"s": np.float32(0.5), "zero": np.uint8(3)}
    path = write_graph(tmp_path / "nested.onnx", NESTED, values, NESTED_X, "float[4] y")
    graphs, unread = read(path)
    places = [graph.place for graph in graphs]
    inner = "in then_branch of If 'y': in {} of If 'a': "
    assert places == [
        "",
        "in then_branch of If 'y': ",
        inner.format("then_branch"),
        inner.format("else_branch"),
        "in else_branch of If 'y': ",
    ]
    assert (unread.parts, unread.outside, unread.external) == ([], [], [])
    innermost = graphs[2]
    assert innermost.stored("s") == np.float32(0.5)
    assert innermost.types["codes"] == "uint8"
    assert innermost.types["value"] == "float32"
    assert [innermost.label(node) for node in innermost.file.nodes] == [
        f"{inner.format('then_branch')}DequantizeLinear 'value'",
        f"{inner.format('then_branch')}Mul 'b'",
    ]


def test_bodies_of_functions_are_read(tmp_path: Path) -> None:
    functions = '<domain: "local", opset_import: ["" : 21]>\nf (a) => (b) { b = com.microsoft.QLinearSigmoid(a) }'
    path = write_graph(tmp_path / "f.onnx", "y = local.f(x)", {}, "float[4] x", "float[4] y", functions=functions)
    graphs, _ = read(path)
    assert [(graph.place, len(graph.file.nodes)) for graph in graphs] == [("", 1), ("in function 'f': ", 1)]


def in_branches(levels: int) -> onnx.ModelProto:
    """Build an If in an If in an If."""
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["inner"])], "inner", [], [_info("inner")])
    for level in range(levels):
        name = f"y{level}"
        node = helper.make_node("If", ["yes"], [name], then_branch=graph, else_branch=graph if not level else _leaf())
        graph = helper.make_graph([node], f"graph{level}", [], [_info(name)])
    graph.input.extend([_info("x"), helper.make_tensor_value_info("yes", TensorProto.BOOL, [])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _leaf() -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Identity", ["x"], ["leaf"])], "leaf", [], [_info("leaf")])


def _info(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])


@pytest.mark.parametrize(("levels", "parts"), [(16, 0), (17, 2), (30, 2)])
def test_graphs_that_are_too_deep_are_left_out_and_named(tmp_path: Path, levels: int, parts: int) -> None:
    path = tmp_path / "deep.onnx"
    path.write_bytes(in_branches(levels).SerializeToString())
    _, unread = read(path)
    assert len(unread.parts) == parts
    assert all("deeper than 16 levels" in part for part in unread.parts)
    assert ("not-looked-into" in {finding.kind for finding in diagnose(path).findings}) is bool(parts)


def test_damaged_inner_graphs_and_functions_are_named(tmp_path: Path) -> None:
    model = build_model(CONVOLUTION, constants())
    node = model.graph.node.add(op_type="If", input=["x"], output=["z"])
    node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g.node.add(op_type="Relu")
    content = model.SerializeToString()
    # The length of the branch's only node, and then that of a function, promise more than there is.
    broken = content.replace(b"\x32\x08\x0a\x06\x22\x04Relu", b"\x32\x08\x0a\x7f\x22\x04Relu") + b"\xca\x01\x02\x3a\x7f"
    assert len(broken) == len(content) + 5
    assert broken[: len(content)] != content
    path = tmp_path / "broken.onnx"
    path.write_bytes(broken)
    _, unread = read(path)
    assert unread.parts == ["in then_branch of If 'z': a graph that is damaged.", "a function that is damaged."]


def test_numbers_of_16_bits_that_are_upper_halves_of_float32(tmp_path: Path) -> None:
    model = build_model("y = Cast<to = 1>(h)\n z = Add(x, y)", {}, "float[2] x", "float[2] z")
    halves = np.array([1.5, -3], np.float32).view(np.uint32) >> 16
    model.graph.initializer.add(
        name="h", data_type=TensorProto.BFLOAT16, dims=[2], raw_data=halves.astype(np.uint16).tobytes()
    )
    path = tmp_path / "halves.onnx"
    path.write_bytes(model.SerializeToString())
    (graph,), unread = read(path)
    np.testing.assert_array_equal(graph.stored("h"), np.array([1.5, -3], np.float32), strict=True)
    assert graph.type_of("h") == "bfloat16"
    assert unread.parts == []


def test_a_message_of_a_part_is_read_like_the_whole() -> None:
    node = onnx.NodeProto(op_type="Relu", output=["y"])
    assert parse_message("NodeProto", node.SerializeToString()).op_type == "Relu"
