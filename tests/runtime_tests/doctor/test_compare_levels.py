"""Differences explained by rounding, and others; random models; the first tensor of a difference."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from numpy.typing import NDArray

from qil_deploy.runtime_tests.doctor.check_runtime import runtime_findings
from qil_deploy.runtime_tests.doctor.compare_levels import TensorDifference, difference, first_difference
from qil_deploy.runtime_tests.doctor.try_runtime import RuntimeTrial

from .graph_files import CONVOLUTION, constants, write_graph

RAMP = np.linspace(-1, 1, 1000, dtype=np.float32)
CODES = np.arange(256, dtype=np.uint8)


def changed(array: NDArray[Any], index: int, value: object) -> NDArray[Any]:
    copy = array.copy()
    copy[index] = value
    return copy


@pytest.mark.parametrize(
    ("plain", "optimized", "step", "rounding"),
    [
        (CODES, CODES, 0, True),
        (CODES, np.minimum(CODES, 254) + np.uint8(1), 0, True),  # one step everywhere
        (CODES, changed(CODES, 0, 2), 0, True),  # two steps of one among many
        (CODES, CODES // 2, 0, False),
        (RAMP, RAMP * np.float32(1.01), 0, True),
        (RAMP, RAMP * np.float32(1.2), 0, False),
        (np.full(4, 3, np.float32), np.full(4, 3, np.float32) * np.float32(1 + 1e-6), 0, True),
        (np.full(4, 3, np.float32), np.full(4, 3.5, np.float32), 0, False),
        (np.full(4, 3, np.float32), np.full(4, 3.5, np.float32), 0.5, True),  # one step of the codes behind
        (np.zeros(4, np.float32), np.full(4, 1e-12, np.float32), 0, True),
        (RAMP, changed(RAMP, 5, np.nan), 0, False),
        (changed(RAMP, 5, np.nan), changed(RAMP, 5, np.nan), 0, True),
        (changed(RAMP, 5, np.inf), changed(RAMP, 5, np.inf), 0, True),
        (changed(RAMP, 5, np.inf), changed(RAMP, 5, -np.inf), 0, False),
        (RAMP, RAMP[:5], 0, False),
        (RAMP, RAMP.astype(np.float16), 0, False),
        (np.arange(100), changed(np.arange(100), 1, 7), 0, True),  # one class of a hundred
        (np.arange(100), np.arange(100) + 1, 0, False),
        (np.array(["a", "b"]), np.array(["a", "b"]), 0, True),
        (np.array(["a", "b"]), np.array(["a", "c"]), 0, False),
        (np.zeros(0, np.float32), np.zeros(0, np.float32), 0, True),
        (np.float32(1e38) * RAMP, -np.float32(1e38) * RAMP, 0, False),
    ],
)
def test_what_rounding_explains(plain: NDArray[Any], optimized: NDArray[Any], step: float, rounding: bool) -> None:
    found = difference("y", plain, optimized, step=step)
    assert found.is_rounding is rounding, found
    assert TensorDifference(**json.loads(json.dumps(asdict(found), allow_nan=False))) == found


ARRAYS = st.sampled_from([np.float32, np.float64, np.float16, np.uint8, np.int8, np.int64, np.bool_]).flatmap(
    lambda kind: st.tuples(*[nps.arrays(kind, nps.array_shapes(min_dims=0, max_dims=2, min_side=0))] * 2)
)


@given(ARRAYS)
def test_any_two_arrays_can_be_compared(arrays: tuple[NDArray[Any], NDArray[Any]]) -> None:
    found = difference("y", *arrays)
    json.dumps(asdict(found), allow_nan=False)
    assert difference("y", arrays[0], arrays[0]).differing == 0
    assert (found.differing == 0) is bool(
        arrays[0].shape == arrays[1].shape and np.array_equal(*arrays, equal_nan=arrays[0].dtype.kind == "f")
    ) or not arrays[0].size


def test_models_that_draw_random_numbers_are_not_compared() -> None:
    changed_output = difference("y", RAMP, -RAMP)
    (finding,) = runtime_findings(RuntimeTrial(outputs=(changed_output,), random=True), set())
    assert (finding.kind, finding.severity, finding.where) == ("not-compared", "note", ("output 'y'",))
    assert "random numbers" in finding.what
    (finding,) = runtime_findings(RuntimeTrial(outputs=(changed_output,)), {"bad-scale", "s8s8"})
    assert (finding.kind, finding.severity) == ("optimizer-changes-result", "wrong")
    assert finding.where == ("output 'y': 1,000 of 1,000 differ, by up to 2",)
    assert finding.why.endswith("Explained by: bad-scale.")
    assert list(runtime_findings(RuntimeTrial(outputs=(difference("y", RAMP, RAMP),), random=True), set())) == []


def test_a_difference_that_begins_with_single_steps_is_inexact() -> None:
    changed_output, step = difference("y", RAMP, -RAMP), difference("codes", CODES, changed(CODES, 3, 4))
    (finding,) = runtime_findings(RuntimeTrial(outputs=(changed_output,), first=step), {"s8s8"})
    assert (finding.kind, finding.severity) == ("optimizer-changes-result", "inexact")
    assert finding.where[1] == "first inside the network at 'codes': 1 of 256 differ, by up to 1"
    jump = difference("codes", CODES, changed(CODES, 3, 200))
    (finding,) = runtime_findings(RuntimeTrial(outputs=(changed_output,), first=jump), {"s8s8"})
    assert finding.severity == "wrong"


def test_the_first_tensor_that_differs_is_named(tmp_path: Path) -> None:
    """The second graph stands for the optimizer's result for the first."""
    body = CONVOLUTION + "y_value = DequantizeLinear(y, y_scale, y_zero)\n z = Relu(y_value)"
    z = "float[1,3,6,6] z"
    plain = write_graph(tmp_path / "plain.onnx", body, constants(), y=z)
    wrong = write_graph(tmp_path / "wrong.onnx", body, constants(w_scale=np.full(3, 0.5, np.float32)), y=z)
    inputs = {"x": np.random.default_rng(0).integers(0, 256, (1, 2, 8, 8), np.uint8)}
    found = first_difference(plain, wrong, inputs)
    assert found is not None
    assert found.tensor == "w_value"
    assert first_difference(plain, plain, inputs) is None
