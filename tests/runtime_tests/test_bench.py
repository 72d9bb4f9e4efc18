from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qil_deploy.errors import ConfigError, DataError, ModelFileError, OutputError
from qil_deploy.runtime_tests import BenchReport, benchmark, read_report, write_report
from qil_deploy.runtime_tests.bench import random_inputs
from qil_deploy.runtime_tests.sessions import create_session


class FakeMachine:
    """A clock that stands still except while a model runs or is loaded, and a record of both.

    The n-th run of all takes `durations[n]` nanoseconds.
    """

    def __init__(self, durations: Mapping[int, int] | None = None) -> None:
        self.now = 0
        self.durations = durations or {}
        self.runs: list[tuple[str, int]] = []

    def clock(self) -> int:
        return self.now

    def create_session(self, path: Path, *, threads: int) -> FakeSession:
        self.now += 5_000_000
        return FakeSession(path, threads)

    def run_session(self, session: FakeSession, inputs: object, *, path: Path) -> None:
        assert inputs is not None
        assert session.path == path
        self.now += self.durations.get(len(self.runs), 1_000_000 + len(self.runs))
        self.runs.append((path.name, session.threads))


class FakeSession:
    def __init__(self, path: Path, threads: int) -> None:
        self.path = path
        self.threads = threads

    def get_inputs(self) -> list[Any]:
        return []


def fake_benchmark(
    machine: FakeMachine,
    folder: Path,
    names: list[str],
    *,
    threads: tuple[int, ...] = (1,),
    repeats: int,
    warmup: int = 2,
    seed: int = 0,
) -> BenchReport:
    paths = [folder / name for name in names]
    for path in paths:
        path.write_bytes(path.name.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qil_deploy.runtime_tests.bench.create_session", machine.create_session)
        patch.setattr("qil_deploy.runtime_tests.bench.run_session", machine.run_session)
        return benchmark(paths, threads=threads, repeats=repeats, warmup=warmup, seed=seed, clock=machine.clock)


@settings(max_examples=40, deadline=None)
@given(
    models=st.integers(1, 4),
    threads=st.sampled_from([(1,), (1, 2), (4, 1, 2)]),
    repeats=st.integers(1, 6),
    warmup=st.integers(0, 3),
    seed=st.integers(0, 2**32),
)
def test_every_measured_run_is_counted_once_and_no_warm_up_run_is(
    tmp_path_factory: pytest.TempPathFactory,
    models: int,
    threads: tuple[int, ...],
    repeats: int,
    warmup: int,
    seed: int,
) -> None:
    machine = FakeMachine()
    names = [f"{index}.onnx" for index in range(models)]
    folder = tmp_path_factory.mktemp("bench")
    report = fake_benchmark(machine, folder, names, threads=threads, repeats=repeats, warmup=warmup, seed=seed)
    candidates = models * len(threads)
    assert len(machine.runs) == candidates * (warmup + repeats)
    expected: dict[tuple[str, int], list[int]] = {}
    for number, run in enumerate(machine.runs):
        if number >= candidates * warmup:
            expected.setdefault(run, []).append(1_000_000 + number)
    found = {(Path(row.model.path).name, row.threads): list(row.samples_ns) for row in report.latencies}
    assert found == expected
    assert all(len(runs) == repeats for runs in found.values())


def test_models_are_interleaved_in_a_seeded_order(tmp_path: Path) -> None:
    names = ["a.onnx", "b.onnx", "c.onnx"]

    def rounds(seed: int) -> list[tuple[tuple[str, int], ...]]:
        machine = FakeMachine()
        fake_benchmark(machine, tmp_path, names, repeats=20, warmup=0, seed=seed)
        return [tuple(machine.runs[start : start + 3]) for start in range(0, 60, 3)]

    first = rounds(seed=7)
    assert all(sorted(order) == [(name, 1) for name in names] for order in first)
    assert len(set(first)) > 1
    assert rounds(seed=7) == first
    assert rounds(seed=8) != first


def test_statistics_are_those_of_the_measured_runs(tmp_path: Path) -> None:
    durations = {0: 900_000_000} | {number + 1: (number + 1) * 1_000_000 for number in range(101)}
    report = fake_benchmark(FakeMachine(durations), tmp_path, ["a.onnx"], repeats=101, warmup=1)
    (row,) = report.latencies
    assert row.median_ms == 51.0
    assert row.p95_ms == 96.0
    assert row.min_ms == 1.0
    assert row.iqr_ms == 50.0
    assert row.load_ms == 5.0
    assert row.ratio == 1.0


def test_ratios_refer_to_the_first_model_with_as_many_threads(tmp_path: Path) -> None:
    milliseconds = {("a.onnx", 1): 8, ("b.onnx", 1): 2, ("a.onnx", 2): 5, ("b.onnx", 2): 10}
    machine = FakeMachine()

    def run(session: FakeSession, inputs: object, *, path: Path) -> None:
        FakeMachine.run_session(machine, session, inputs, path=path)
        machine.now += milliseconds[path.name, session.threads] * 1_000_000 - (999_999 + len(machine.runs))

    machine.run_session = run  # type: ignore[method-assign]  # durations by model, not by number
    report = fake_benchmark(machine, tmp_path, ["a.onnx", "b.onnx"], threads=(1, 2), repeats=3)
    found = {(Path(row.model.path).name, row.threads): (row.median_ms, row.ratio) for row in report.latencies}
    assert found == {
        ("a.onnx", 1): (8.0, 1.0),
        ("b.onnx", 1): (2.0, 0.25),
        ("a.onnx", 2): (5.0, 1.0),
        ("b.onnx", 2): (10.0, 2.0),
    }


def test_a_clock_that_stands_still_is_refused(tmp_path: Path) -> None:
    machine = FakeMachine(dict.fromkeys(range(100), 0))
    with pytest.raises(ConfigError, match="the clock did not advance"):
        fake_benchmark(machine, tmp_path, ["a.onnx"], repeats=2)


def test_real_models_are_measured_and_the_report_returns_from_json(
    write_model: Callable[..., Path], tmp_path: Path
) -> None:
    paths = [write_model("a.onnx"), write_model("b.onnx", format="float", input="float")]
    report = benchmark(paths, threads=(1, 2), repeats=3, warmup=1)
    assert [(row.model.path, row.threads) for row in report.latencies] == [
        (str(path), threads) for threads in (1, 2) for path in paths
    ]
    assert [row.model.bytes for row in report.latencies[:2]] == [path.stat().st_size for path in paths]
    assert all(row.min_ms > 0 and row.load_ms > 0 for row in report.latencies)
    assert report.environment.onnxruntime == onnxruntime.__version__
    assert report.environment.numpy == np.__version__
    assert report.environment.cpu
    write_report(tmp_path / "report.json", report)
    assert read_report(tmp_path / "report.json", BenchReport) == report


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": ()}, "no number of threads"),
        ({"threads": (0,)}, "threads is 0; it must be at least 1"),
        ({"threads": (1, 1)}, r"threads are \[1, 1\]; name each once"),
        ({"batch": 0}, "batch is 0; it must be at least 1"),
        ({"repeats": 0}, "repeats is 0; it must be at least 1"),
        ({"warmup": -1}, "warmup is -1; it must be at least 0"),
    ],
)
def test_options_out_of_range_are_refused(
    write_model: Callable[..., Path], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        benchmark([write_model()], **options)


def test_no_model_and_the_same_model_twice_are_refused(write_model: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="no model to measure"):
        benchmark([])
    with pytest.raises(ConfigError, match="name each once"):
        benchmark([write_model(), write_model()])


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="there is no model file"):
        benchmark([tmp_path / "absent.onnx"])


def identity_model(folder: Path, element: int, shape: list[int | str]) -> Path:
    value = helper.make_tensor_value_info("x", element, shape)
    result = helper.make_tensor_value_info("y", element, shape)
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", [value], [result])
    opsets = [helper.make_opsetid("", 21)]
    path = folder / "identity.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    return path


def inputs_of(path: Path, *, batch: int = 3, seed: int = 0) -> dict[str, NDArray[Any]]:
    return random_inputs(create_session(path), batch=batch, seed=seed, path=path)


@pytest.mark.parametrize(
    ("element", "dtype", "lowest", "highest"),
    [(TensorProto.UINT8, np.uint8, 0, 255), (TensorProto.INT8, np.int8, -128, 127)],
)
def test_integer_inputs_cover_their_whole_range(
    tmp_path: Path, element: int, dtype: type, lowest: int, highest: int
) -> None:
    x = inputs_of(identity_model(tmp_path, element, ["batch", 64, 64]))["x"]
    assert (x.dtype, x.shape) == (np.dtype(dtype), (3, 64, 64))
    assert (x.min(), x.max()) == (lowest, highest)


def test_float_inputs_are_seeded(tmp_path: Path) -> None:
    path = identity_model(tmp_path, TensorProto.FLOAT, ["n", 5])
    x = inputs_of(path, seed=1)["x"]
    assert (x.dtype, x.shape) == (np.dtype(np.float32), (3, 5))
    np.testing.assert_array_equal(inputs_of(path, seed=1)["x"], x)
    assert (inputs_of(path, seed=2)["x"] != x).any()


def test_a_model_with_a_fixed_batch_takes_that_batch_only(tmp_path: Path) -> None:
    path = identity_model(tmp_path, TensorProto.FLOAT, [2, 5])
    assert inputs_of(path, batch=2)["x"].shape == (2, 5)
    with pytest.raises(ModelFileError, match=r"input 'x' of .* has shape \[2, 5\]; a batch of 3 needs"):
        inputs_of(path, batch=3)


def test_another_free_dimension_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="all others fixed"):
        inputs_of(identity_model(tmp_path, TensorProto.FLOAT, ["n", 3, "height", 8]))


def test_an_input_type_that_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"is a tensor\(string\); inputs can be drawn for"):
        inputs_of(identity_model(tmp_path, TensorProto.STRING, ["n"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-20], "cannot be read as a report"),
        (lambda text: text.replace("bench/1", "bench/9"), "has schema 'qil_deploy.bench/9'"),
        (lambda text: text.replace('"repeats"', '"repeat"'), "report must be an object with the entries"),
        (lambda text: text.replace('"repeats": 1', '"repeats": "1"'), "report.repeats must be of type int"),
        (
            lambda text: text.replace('"samples_ns": [', '"samples_ns": ["x",'),
            r"samples_ns\[0\] must be of type int",
        ),
        (lambda _: "[]", "has schema None"),
    ],
)
def test_a_damaged_report_is_refused(
    write_model: Callable[..., Path], tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    path = tmp_path / "report.json"
    write_report(path, benchmark([write_model()], repeats=1, warmup=0))
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=message):
        read_report(path, BenchReport)


def test_a_report_that_cannot_be_written_is_refused(write_model: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        write_report(tmp_path, benchmark([write_model()], repeats=1, warmup=0))
