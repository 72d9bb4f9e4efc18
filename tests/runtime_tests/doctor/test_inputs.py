"""Inputs for a trial: every element type, sizes for free dimensions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from qil_deploy.runtime_tests.doctor import diagnose
from qil_deploy.runtime_tests.doctor.compare_levels import run
from qil_deploy.runtime_tests.doctor.inputs import UndrawnError, describe_inputs, drawn_inputs
from qil_deploy.runtime_tests.sessions import create_session

from .graph_files import build_model, write_graph

TYPES = (
    "float", "double", "float16", "bfloat16", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
    "bool", "string", "float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz",
)  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_can_be_drawn_and_run(tmp_path: Path, kind: str) -> None:
    path = write_graph(tmp_path / "model.onnx", "y = Identity(x)", {}, f"{kind}[N,3] x", f"{kind}[N,3] y")
    session = create_session(path)
    inputs = next(drawn_inputs(session, seed=0, ranges={}))
    assert describe_inputs(session, inputs)[0].startswith("'x' ")
    assert describe_inputs(session, inputs)[0].endswith(" [1, 3]")
    run(session, inputs)
    diagnosis = diagnose(path)
    assert [finding.kind for finding in diagnosis.findings] == ["not-quantized"]
    assert all(output.rounding for output in diagnosis.compared)


def test_floats_that_are_numbers_are_drawn_of_types_that_numpy_lacks(tmp_path: Path) -> None:
    """Neither infinity nor NaN: they would hide differences."""
    for kind in ("bfloat16", "float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz"):
        path = write_graph(tmp_path / f"{kind}.onnx", "y = Cast<to = 1>(x)", {}, f"{kind}[N,4000] x", "float[N,4000] y")
        session = create_session(path)
        (value,) = run(session, next(drawn_inputs(session, seed=0, ranges={}))).values()
        assert np.isfinite(value).all(), kind
        assert np.abs(value).max() <= 2
        assert len(np.unique(value)) > 50


def test_float_inputs_cover_the_codes_that_they_become(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "model.onnx", "y = Identity(x)", {}, "float[1,4000] x", "float[1,4000] y")
    session = create_session(path)
    x = next(drawn_inputs(session, seed=0, ranges={"x": (-3.0, 5.0)}))["x"]
    assert (x.dtype, x.min() < -2.9, x.max() > 4.9) == (np.float32, True, True)
    assert np.abs(next(drawn_inputs(session, seed=0, ranges={}))["x"].mean()) < 0.1


@pytest.mark.parametrize(("size", "kernel"), [("H", 3), ("H", 33), ("2", 2)])
def test_sizes_of_free_dimensions_are_tried_until_one_runs(tmp_path: Path, size: str, kernel: int) -> None:
    weights = {"w": np.ones((1, 1, kernel, kernel), np.float32)}
    path = write_graph(tmp_path / "model.onnx", "y = Conv(x, w)", weights, f"float[N,1,{size},W] x", "float[N,1,A,B] y")
    diagnosis = diagnose(path)
    assert [finding.kind for finding in diagnosis.findings] == ["not-quantized"]
    assert [output.output for output in diagnosis.compared] == ["y"]


def test_a_model_that_runs_with_none_of_the_sizes_says_so(tmp_path: Path) -> None:
    body = "s = Reshape(x, shape)\n y = Relu(s)"
    path = write_graph(tmp_path / "model.onnx", body, {"shape": np.array([-1, 7919])}, "float[N,T] x", "float[A,B] y")
    (finding,) = [finding for finding in diagnose(path).findings if finding.kind == "does-not-run"]
    assert "fix them in the file" in finding.remedy


def test_large_inputs_and_inputs_that_are_no_tensors_are_not_drawn(tmp_path: Path) -> None:
    x, y = "float[1,3,65536,65536] x", "float[1,3,65536,65536] y"
    large = write_graph(tmp_path / "large.onnx", "y = Relu(x)", {}, x, y)
    with pytest.raises(UndrawnError, match=r"its inputs have 12,884,901,888 elements"):
        next(drawn_inputs(create_session(large), seed=0, ranges={}))
    (finding,) = [finding for finding in diagnose(large).findings if finding.kind == "not-compared"]
    assert finding.severity == "unknown"
    model = build_model("y = SequenceAt(x, i)", {"i": np.int64(0)}, "float[1] x", "float[1] y")
    model.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [1]))
    sequence = tmp_path / "sequence.onnx"
    sequence.write_bytes(model.SerializeToString())
    kinds = {finding.kind: finding.severity for finding in diagnose(sequence).findings}
    assert kinds["not-compared"] == "unknown"
