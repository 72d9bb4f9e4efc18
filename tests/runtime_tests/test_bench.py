"""`benchmark` on a fake machine, whose clock records exactly what was run, and on small real models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qil_deploy.errors import ConfigError, DataError, ModelFileError, OutputError
from qil_deploy.runtime_tests import BenchOptions, BenchReport, benchmark, read_report, write_report
from qil_deploy.runtime_tests.bench.report import COLD, NATIVE, WARM
from qil_deploy.runtime_tests.bench.trial import Trial

RUN = "qil_deploy.runtime_tests.bench.run"
ROUNDS = "qil_deploy.runtime_tests.bench.rounds"
QUICK = BenchOptions(caches=(WARM,), repeats=1, warmup=0, processes=1)


class FakeMachine:
    """A clock that advances only while a model runs or a buffer is read, and a record of all runs.

    The n-th run of all takes `durations[n]` nanoseconds. Models in `broken` cannot be tried; those in `dying` fail at
    their n-th run; after `interrupt` runs somebody presses Ctrl-C.
    """

    def __init__(
        self,
        durations: Mapping[int, int] | None = None,
        *,
        broken: tuple[str, ...] = (),
        dying: Mapping[str, int] | None = None,
        interrupt: int | None = None,
    ) -> None:
        self.now = 0
        self.durations = durations or {}
        self.broken = broken
        self.dying = dying or {}
        self.interrupt = interrupt
        self.runs: list[tuple[str, int]] = []
        self.evictions: list[int] = []

    def clock(self) -> int:
        return self.now

    def try_model(self, path: Path, options: object) -> Trial:
        assert options is not None
        if path.name in self.broken:
            raise ModelFileError(f"{path.name} crashed.")
        return Trial(load_ms=5.0, first_run_ms=2.0, peak_bytes=100_000_000)

    def create_session(self, path: Path, *, threads: int, cpus: tuple[int, ...], kernels: object) -> FakeSession:
        assert kernels is None
        assert len(cpus) in (0, threads)
        return FakeSession(path, threads)

    def run_session(self, session: FakeSession, inputs: object, *, path: Path) -> None:
        assert inputs is not None
        assert session.path == path
        number = len(self.runs)
        if number == self.interrupt:
            raise KeyboardInterrupt
        if sum(name == path.name for name, _ in self.runs) == self.dying.get(path.name):
            raise ModelFileError(f"{path.name} failed on the way.")
        self.now += self.durations.get(number, 1_000_000 + number)
        self.runs.append((path.name, session.threads))

    def evict(self) -> None:
        self.now += 77_000_000
        self.evictions.append(len(self.runs))


class FakeSession:
    def __init__(self, path: Path, threads: int) -> None:
        self.path = path
        self.threads = threads

    def get_inputs(self) -> list[Any]:
        return []


def patch_runs(patch: pytest.MonkeyPatch, machine: FakeMachine) -> None:
    """Let the fake machine load and run the models."""
    patch.setattr(f"{RUN}.try_model", machine.try_model)
    patch.setattr(f"{ROUNDS}.create_session", machine.create_session)
    patch.setattr(f"{ROUNDS}.run_session", machine.run_session)


def fake_benchmark(machine: FakeMachine, folder: Path, names: list[str], options: BenchOptions) -> BenchReport:
    paths = [folder / name for name in names]
    for path in paths:
        path.write_bytes(path.name.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch_runs(patch, machine)
        patch.setattr(f"{RUN}.try_runtime", lambda _: 60_000_000)
        patch.setattr(f"{RUN}.count_macs", lambda _: 3_000_000)
        patch.setattr(f"{RUN}.arithmetic_of", lambda _: None)
        patch.setattr("qil_deploy.runtime_tests.bench.eviction.CacheEvictor.evict", lambda *_: machine.evict())
        patch.setattr("qil_deploy.runtime_tests.bench.eviction.LARGEST_BUFFER", 2**12)
        return benchmark(paths, options, clock=machine.clock)


def measured(report: BenchReport) -> dict[tuple[str, int, str], list[int]]:
    """Return the samples of each model in each setting, the control's under the name `control`."""
    rows = {(Path(row.model.path).name, row.threads, row.caches): list(row.samples_ns) for row in report.latencies}
    return rows | {("control", row.threads, row.caches): list(row.samples_ns) for row in report.controls}


@settings(max_examples=40, deadline=None)
@given(
    models=st.integers(1, 4),
    threads=st.sampled_from([(1,), (1, 2), (4, 1, 2)]),
    repeats=st.integers(1, 6),
    warmup=st.integers(0, 3),
    seed=st.integers(0, 2**32),
)
def test_every_measured_run_is_counted_once_and_no_other_run_is(
    tmp_path_factory: pytest.TempPathFactory,
    models: int,
    threads: tuple[int, ...],
    repeats: int,
    warmup: int,
    seed: int,
) -> None:
    machine = FakeMachine()
    names = [f"{index}.onnx" for index in range(models)]
    options = BenchOptions(threads=threads, caches=(WARM,), repeats=repeats, warmup=warmup, seed=seed)
    report = fake_benchmark(machine, tmp_path_factory.mktemp("bench"), names, options)
    slots = (models + 1) * len(threads)
    assert len(machine.runs) == 2 * slots * (warmup + repeats)
    pairs = list(zip(machine.runs[::2], machine.runs[1::2], strict=True))
    assert all(first == second for first, second in pairs), "the model itself warms the caches"
    expected: dict[tuple[str, int, str], list[int]] = {}
    for number in range(slots * warmup, slots * (warmup + repeats)):
        name, count = pairs[number][1]
        expected.setdefault((name, count, WARM), []).append(1_000_000 + 2 * number + 1)
    found = measured(report)
    assert all(len(runs) == repeats for runs in found.values())
    for count in threads:
        found["0.onnx", count, WARM] += found.pop(("control", count, WARM))
    assert {key: sorted(runs) for key, runs in found.items()} == expected


def test_before_a_cold_run_a_buffer_is_read_and_no_model_runs(tmp_path: Path) -> None:
    machine = FakeMachine()
    options = BenchOptions(caches=(COLD,), repeats=4, warmup=1)
    report = fake_benchmark(machine, tmp_path, ["a.onnx", "b.onnx"], options)
    assert len(machine.runs) == 3 * 5
    assert machine.evictions == list(range(15)), "one before each run"
    assert sorted(sample for runs in measured(report).values() for sample in runs) == [
        1_000_000 + number for number in range(3, 15)
    ]
    assert {row.caches for row in report.latencies} == {COLD}
    assert any("is larger than the buffer" in warning for warning in report.warnings)


def test_models_are_interleaved_in_a_seeded_order(tmp_path: Path) -> None:
    names = ["a.onnx", "b.onnx", "c.onnx"]

    def rounds(seed: int) -> list[tuple[tuple[str, int], ...]]:
        machine = FakeMachine()
        fake_benchmark(machine, tmp_path, names, BenchOptions(caches=(WARM,), repeats=20, warmup=0, seed=seed))
        runs = machine.runs[1::2]
        return [tuple(runs[start : start + 4]) for start in range(0, 80, 4)]

    first = rounds(seed=7)
    assert all(sorted(order) == [("a.onnx", 1), *((name, 1) for name in names)] for order in first)
    assert len(set(first)) > 1
    assert rounds(seed=7) == first
    assert rounds(seed=8) != first


def test_statistics_are_those_of_the_measured_runs(tmp_path: Path) -> None:
    times = {False: iter(range(1, 102)), True: iter([50] * 101)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{ROUNDS}._time_once", lambda slot, _: next(times[slot.control]) * 10**6)
        options = BenchOptions(caches=(WARM,), repeats=101, warmup=0)
        report = fake_benchmark(FakeMachine(), tmp_path, ["a.onnx"], options)
    (row,) = report.latencies
    assert (row.median_ms, row.p95_ms, row.min_ms, row.iqr_ms) == (51.0, 96.0, 1.0, 50.0)
    assert (row.ratio, row.ratio_interval) == (1.0, None)
    assert row.gmacs == pytest.approx(3e6 / 51e-3 / 1e9)
    (control,) = report.controls
    assert control.ratio == 50 / 51
    (cost,) = report.models
    assert (cost.load_ms, cost.first_run_ms, cost.peak_bytes, cost.runtime_bytes, cost.macs) == (
        5.0,
        2.0,
        100_000_000,
        60_000_000,
        3_000_000,
    )


def test_ratios_refer_to_the_first_model_in_the_same_setting(tmp_path: Path) -> None:
    milliseconds = {("a.onnx", 1): 8, ("b.onnx", 1): 2, ("a.onnx", 2): 5, ("b.onnx", 2): 10}
    machine = FakeMachine()

    def run(session: FakeSession, inputs: object, *, path: Path) -> None:
        FakeMachine.run_session(machine, session, inputs, path=path)
        machine.now += milliseconds[path.name, session.threads] * 1_000_000 - (999_999 + len(machine.runs))

    machine.run_session = run  # type: ignore[method-assign]  # durations by model, not by number
    options = BenchOptions(threads=(1, 2), repeats=6)
    report = fake_benchmark(machine, tmp_path, ["a.onnx", "b.onnx"], options)
    found = {
        (Path(row.model.path).name, row.threads, row.caches): (row.median_ms, row.ratio) for row in report.latencies
    }
    assert found == {
        (name, threads, caches): expected
        for caches in (WARM, COLD)
        for (name, threads), expected in {
            ("a.onnx", 1): (8.0, 1.0),
            ("b.onnx", 1): (2.0, 0.25),
            ("a.onnx", 2): (5.0, 1.0),
            ("b.onnx", 2): (10.0, 2.0),
        }.items()
    }
    intervals = [row.ratio_interval for row in report.latencies if row.ratio != 1]
    assert all(interval is not None and interval.low == interval.high for interval in intervals)
    assert all(control.ratio == 1 for control in report.controls)


def test_a_clock_that_stands_still_is_refused(tmp_path: Path) -> None:
    machine = FakeMachine(dict.fromkeys(range(100), 0))
    with pytest.raises(ConfigError, match="the clock did not advance"):
        fake_benchmark(machine, tmp_path, ["a.onnx"], BenchOptions(caches=(WARM,), repeats=2, warmup=0))


def test_a_model_that_cannot_be_tried_does_not_keep_others_from_being_measured(tmp_path: Path) -> None:
    machine = FakeMachine(broken=("a.onnx",))
    options = BenchOptions(caches=(WARM,), repeats=3, warmup=0)
    report = fake_benchmark(machine, tmp_path, ["a.onnx", "b.onnx", "c.onnx"], options)
    assert [(failure.path, failure.reason) for failure in report.failures] == [
        (str(tmp_path / "a.onnx"), "a.onnx crashed.")
    ]
    assert [Path(row.model.path).name for row in report.latencies] == ["b.onnx", "c.onnx"]
    assert report.latencies[0].ratio == 1.0
    with pytest.raises(ModelFileError, match=r"a\.onnx crashed"):
        fake_benchmark(machine, tmp_path, ["a.onnx"], options)


@pytest.mark.parametrize(("dying", "left"), [("a.onnx", "b.onnx"), ("b.onnx", "a.onnx")])
def test_a_model_that_fails_on_the_way_is_left_out(tmp_path: Path, dying: str, left: str) -> None:
    machine = FakeMachine(dying={dying: 5})
    options = BenchOptions(caches=(WARM,), repeats=8, warmup=0)
    report = fake_benchmark(machine, tmp_path, ["a.onnx", "b.onnx"], options)
    assert [failure.reason for failure in report.failures] == [f"{dying} failed on the way."]
    (row,) = report.latencies
    assert Path(row.model.path).name == left
    assert len(row.samples_ns) == 8
    assert len(report.controls) == (left == "a.onnx")
    assert [Path(cost.model.path).name for cost in report.models] == [left]


def test_what_was_measured_before_an_interruption_is_kept(tmp_path: Path) -> None:
    options = BenchOptions(caches=(WARM,), repeats=50, warmup=1)
    runs_of_a_round = 2 * 3
    machine = FakeMachine(interrupt=4 * runs_of_a_round + 3)
    report = fake_benchmark(machine, tmp_path, ["a.onnx", "b.onnx"], options)
    assert all(len(samples) == 3 for samples in measured(report).values())
    assert any(warning.startswith("interrupted after 3 of 50 rounds") for warning in report.warnings)
    with pytest.raises(KeyboardInterrupt):
        fake_benchmark(FakeMachine(interrupt=runs_of_a_round + 1), tmp_path, ["a.onnx", "b.onnx"], options)


def test_progress_is_told(tmp_path: Path) -> None:
    machine = FakeMachine()
    told: list[tuple[str, int, int]] = []
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        patch_runs(patch, machine)
        patch.setattr(f"{RUN}.try_runtime", lambda _: 0)
        options = BenchOptions(caches=(WARM,), repeats=2, warmup=1)
        report = benchmark(
            [tmp_path / "a.onnx"], options, clock=machine.clock, progress=lambda *what: told.append(what)
        )
    assert told == [("loading each model in a process of its own", 0, 1), *(("measuring", n, 3) for n in range(3))]
    (cost,) = report.models
    assert cost.macs is None
    assert cost.macs_unknown is not None
    assert "not an ONNX file" in cost.macs_unknown


def test_real_models_are_measured_and_the_report_returns_from_json(
    write_model: Callable[..., Path], tmp_path: Path
) -> None:
    paths = [write_model("a.onnx"), write_model("b.onnx", format="float", input="float")]
    options = BenchOptions(threads=(1, 2), repeats=6, warmup=1, processes=1, profile=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qil_deploy.runtime_tests.bench.eviction.LARGEST_BUFFER", 2**20)
        report = benchmark(paths, options)
    assert [(row.model.path, row.threads, row.caches) for row in report.latencies] == [
        (str(path), threads, caches) for threads in (1, 2) for caches in (WARM, COLD) for path in paths
    ]
    assert {row.target for row in report.latencies} == {NATIVE}
    assert [cost.model.bytes for cost in report.models] == [path.stat().st_size for path in paths]
    assert [cost.arithmetic for cost in report.models] == ["int8", "float32"]
    for row in report.latencies:
        assert row.min_ms > 0
        assert row.gmacs is not None
        assert row.peak_share is not None
        assert len(row.cpus) in (0, row.threads)
    for cost in report.models:
        assert None not in (cost.load_ms, cost.first_run_ms, cost.peak_bytes, cost.runtime_bytes)
    assert [(peak.arithmetic, peak.threads) for peak in report.peaks] == [
        (arithmetic, threads) for threads in (1, 2) for arithmetic in ("int8", "float32")
    ]
    assert [(profile.model.path, profile.threads) for profile in report.profiles] == [
        (str(path), threads) for threads in (1, 2) for path in paths
    ]
    assert {operator.operator for operator in report.profiles[0].operators} >= {"QLinearConv", "QGemm"}
    assert report.environment.onnxruntime == onnxruntime.__version__
    assert report.environment.numpy == np.__version__
    assert report.environment.cpu
    assert report.failures == ()
    write_report(tmp_path / "report.json", report)
    assert read_report(tmp_path / "report.json", BenchReport) == report


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": ()}, "no number of threads"),
        ({"threads": (0,)}, "threads is 0; it must be at least 1"),
        ({"threads": (1, 1025)}, "threads is 1025; it must be at most 1024"),
        ({"threads": (1, 1)}, r"threads are \[1, 1\]; name each once"),
        ({"caches": ()}, r"caches are \[\]; choose from warm, cold"),
        ({"caches": ("hot",)}, r"caches are \['hot'\]; choose from warm, cold"),
        ({"caches": (COLD, COLD)}, r"caches are \['cold', 'cold'\]; name each once"),
        ({"batch": 0}, "batch is 0; it must be at least 1"),
        ({"repeats": 0}, "repeats is 0; it must be at least 1"),
        ({"warmup": -1}, "warmup is -1; it must be at least 0"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"processes": 0}, "processes is 0; it must be at least 1"),
        ({"timeout": 0.0}, "the timeout is 0 seconds; it must be positive"),
        ({"timeout": float("nan")}, "the timeout is nan seconds; it must be positive"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BenchOptions(**options)


def test_no_model_and_the_same_model_twice_are_refused(write_model: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="no model to measure"):
        benchmark([])
    with pytest.raises(ConfigError, match="name each once"):
        benchmark([write_model(), write_model()])


def test_a_missing_model_is_refused_before_work_starts(write_model: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="there is no model file"):
        benchmark([write_model(), tmp_path / "absent.onnx"])
    with pytest.raises(ModelFileError, match="is a folder; name a model file in it"):
        benchmark([tmp_path])


@pytest.fixture(scope="module")
def report_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("text")
    report = fake_benchmark(FakeMachine(), folder, ["a.onnx"], QUICK)
    write_report(folder / "report.json", report)
    return (folder / "report.json").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-20], "cannot be read as a report"),
        (lambda text: text.replace("bench/2", "bench/9"), "has schema 'qil_deploy.bench/9'"),
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
    report_text: str, tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    path = tmp_path / "report.json"
    path.write_text(change(report_text))
    with pytest.raises(DataError, match=message):
        read_report(path, BenchReport)


def test_a_report_that_cannot_be_written_is_refused(report_text: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(report_text)
    with pytest.raises(OutputError, match="is a folder"):
        write_report(tmp_path, read_report(tmp_path / "report.json", BenchReport))
