"""Aggregated profiles, and the product for measuring the peak."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from qil_deploy.errors import ModelFileError
from qil_deploy.runtime_tests.bench import profiler
from qil_deploy.runtime_tests.bench.peak import RUNS, SIZES, measure_peak, product_model
from qil_deploy.runtime_tests.bench.profiler import aggregate, profile_model
from qil_deploy.runtime_tests.bench.report import OperatorTime
from qil_deploy.runtime_tests.reports import ModelFile


def events(runs: list[dict[str, list[int]]]) -> list[dict[str, Any]]:
    """Return a profile of runs, each with the durations of the nodes of each operator."""
    found: list[dict[str, Any]] = [{"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 9}]
    time = 10
    for nodes in runs:
        found.append({"cat": "Session", "name": "model_run", "ts": time, "dur": 1000})
        index = 0
        for operator, durations in nodes.items():
            for duration in durations:
                arguments = {"op_name": operator, "node_index": str(index)}
                found.append(
                    {"cat": "Node", "name": f"n{index}_kernel_time", "ts": time + 1, "dur": duration, "args": arguments}
                )
                index += 1
        time += 1000
    return found


def test_nodes_of_one_operator_are_added_up_run_by_run() -> None:
    runs = [{"Conv": [900, 900], "Clip": [900]}, *({"Conv": [n, 10], "Clip": [5]} for n in (1, 2, 30))]
    assert aggregate(events(runs)[::-1], warmup=1) == (
        OperatorTime(operator="Conv", nodes=2, median_us=12.0, share=12 / 17),
        OperatorTime(operator="Clip", nodes=1, median_us=5.0, share=5 / 17),
    )


def test_a_profile_that_is_cut_off_is_refused() -> None:
    with pytest.raises(ValueError, match="it holds 1 runs"):
        aggregate(events([{"Conv": [1]}]), warmup=1)


def test_a_real_model_is_profiled(write_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_model()
    inputs = {"image": np.zeros((1, 3, 8, 8), np.uint8)}
    profile = profile_model(ModelFile.of(path), inputs, threads=1)
    nodes = {operator.operator: operator.nodes for operator in profile.operators}
    assert (nodes["QLinearConv"], nodes["QGemm"]) == (2, 1)
    assert sum(operator.share for operator in profile.operators) == pytest.approx(1)
    assert list(path.parent.iterdir()) == [path]
    monkeypatch.setattr(profiler, "RUNS", 0)
    with pytest.raises(ModelFileError, match=r"the profile of .* cannot be read: it holds 3 runs"):
        profile_model(ModelFile.of(path), inputs, threads=1)


@pytest.mark.parametrize(
    ("arithmetic", "left", "right"), [("int8", np.uint8, np.int8), ("float32", np.float32, np.float32)]
)
def test_the_product_multiplies(arithmetic: str, left: type, right: type) -> None:
    a: NDArray[Any] = np.arange(15).reshape(3, 5).astype(left)
    b: NDArray[Any] = np.arange(-10, 10).reshape(5, 4).astype(right)
    (y,) = onnxruntime.InferenceSession(product_model(arithmetic, a, b)).run(None, {"a": a})
    np.testing.assert_array_equal(y, a.astype(np.int32) @ b.astype(np.int32))


def test_the_peak_is_that_of_the_fastest_run() -> None:
    ticks = iter(range(10**9))
    durations = [100] * 3 * (RUNS + 3)  # of all runs, warm-up included
    durations[RUNS + 3 + 5] = 50
    durations[0] = 1  # to warm up
    now = [0]

    def clock() -> int:
        tick = next(ticks)
        now[0] += durations[tick // 2] * 1000 if tick % 2 else 0
        return now[0]

    peak = measure_peak("int8", 1, (), clock)
    macs = [rows * length * columns for rows, length, columns in SIZES]
    assert peak.gmacs == max(macs[0] / 100e3, macs[1] / 50e3, macs[2] / 100e3)
    assert (peak.arithmetic, peak.threads) == ("int8", 1)
    assert peak.operator.startswith("MatMulInteger ")
