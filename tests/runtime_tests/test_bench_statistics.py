"""Figures of samples with known true values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qil_deploy.errors import ConfigError
from qil_deploy.runtime_tests.bench.options import BenchOptions
from qil_deploy.runtime_tests.bench.report import Interval, ModelCost, Peak
from qil_deploy.runtime_tests.bench.statistics import (
    FEWEST_ROUNDS,
    Samples,
    bench_report,
    median_interval,
    ratio,
    ratio_interval,
    summarize,
    summarize_control,
)
from qil_deploy.runtime_tests.environment import describe_environment
from qil_deploy.runtime_tests.machine import Activity, describe_machine
from qil_deploy.runtime_tests.reports import ModelFile

MS = 1_000_000


def cost(name: str, macs: int | None = None, arithmetic: str | None = None) -> ModelCost:
    return ModelCost(model=ModelFile(path=name, bytes=1, sha256=""), macs=macs, arithmetic=arithmetic)


def samples(*runs: list[int], control: tuple[int, ...] = (), **fields: object) -> Samples:
    models = tuple(cost(f"{index}.onnx") for index in range(len(runs)))
    known: dict[str, object] = {"threads": 1, "models": models, "runs_ns": tuple(map(tuple, runs))}
    return Samples(**(known | {"control_ns": control} | fields))  # type: ignore[arg-type] # fields by name


@settings(max_examples=30, deadline=None)
@given(
    first=st.lists(st.integers(1, 10**9), min_size=FEWEST_ROUNDS, max_size=60),
    factor=st.sampled_from([1, 2, 16]),
    seed=st.integers(0, 1000),
)
def test_what_hits_both_models_of_a_round_alike_cancels(first: list[int], factor: int, seed: int) -> None:
    assert ratio_interval([factor * run for run in first], first, seed=seed) == Interval(low=factor, high=factor)


def test_the_interval_covers_the_true_ratio_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    inside, experiments, true = 0, 200, 1.25
    for seed in range(experiments):
        first = generator.lognormal(0, 0.2, 60) * MS
        runs = true * generator.lognormal(0, 0.2, 60) * MS
        interval = ratio_interval([round(run) for run in runs], [round(run) for run in first], seed=seed)
        assert interval is not None
        inside += interval.low <= true <= interval.high
    # 95 % of 200 are 190; five standard deviations of a binomial are 15.
    assert 175 <= inside <= 199


def test_disturbances_that_last_many_rounds_widen_the_interval() -> None:
    """One model alone is slow for a third of the time: as a burst, which is one event, or in scattered rounds."""
    quiet = np.random.default_rng(0).integers(990, 1010, 90)
    first = np.random.default_rng(1).integers(990, 1010, 90)
    burst, scattered = quiet.copy(), quiet.copy()
    burst[:40] += 500
    scattered[np.random.default_rng(2).permutation(90)[:40]] += 500

    def width(runs: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
        interval = ratio_interval(runs.tolist(), first.tolist(), seed=0)
        assert interval is not None
        return interval.high - interval.low

    assert width(burst) > 5 * width(quiet)
    assert width(burst) >= width(scattered) > width(quiet)


def test_intervals_are_seeded_and_scale_with_the_samples() -> None:
    generator = np.random.default_rng(0)
    first, runs = (generator.integers(900, 1200, 41).tolist() for _ in range(2))
    interval = ratio_interval(runs, first, seed=3)
    assert interval is not None
    assert interval.low <= ratio(runs, first) <= interval.high
    assert ratio_interval(runs, first, seed=3) == interval
    assert ratio_interval(runs, first, seed=4) != interval
    doubled = ratio_interval([2 * run for run in runs], first, seed=3)
    assert doubled == Interval(low=2 * interval.low, high=2 * interval.high)


@pytest.mark.parametrize("rounds", [1, FEWEST_ROUNDS - 1])
def test_too_few_rounds_give_no_interval(rounds: int) -> None:
    assert ratio_interval([1] * rounds, [1] * rounds, seed=0) is None
    assert median_interval([1] * rounds, seed=0) is None
    assert ratio_interval([1] * FEWEST_ROUNDS, [1] * FEWEST_ROUNDS, seed=0) == Interval(low=1, high=1)


def test_many_rounds_are_drawn_a_few_at_a_time() -> None:
    generator = np.random.default_rng(1)
    first, runs = (generator.integers(10**6, 2 * 10**6, 3000).tolist() for _ in range(2))
    interval = ratio_interval(runs, first, seed=0)
    assert interval is not None
    assert interval.low <= 1 <= interval.high
    assert interval.high - interval.low < 0.1


def test_figures_are_those_of_all_runs() -> None:
    runs = [number * MS for number in range(1, 102)]
    first, second = summarize(samples([50 * MS] * 101, runs), batch=1, seed=0)
    assert (second.median_ms, second.p95_ms, second.min_ms, second.iqr_ms) == (51.0, 96.0, 1.0, 50.0)
    assert second.ratio == 51 / 50
    assert second.ratio_interval is not None
    assert second.ratio_interval.low < 51 / 50 < second.ratio_interval.high
    assert second.samples_ns == tuple(runs)
    assert (first.ratio, first.ratio_interval) == (1.0, None)
    assert (second.gmacs, second.peak_share) == (None, None)


def test_work_per_second_is_a_share_of_the_peak_of_the_same_arithmetic_and_threads() -> None:
    models = cost("a", 5_000_000, "float32"), cost("b", 5_000_000, "int8"), cost("c", 5_000_000, "mixed"), cost("d")
    peaks = [
        Peak(arithmetic=arithmetic, threads=threads, gmacs=gmacs, operator="")
        for arithmetic, threads, gmacs in [("float32", 1, 40.0), ("int8", 1, 80.0), ("int8", 2, 160.0)]
    ]
    runs = ((MS,) * 6,) * 4
    rows = summarize(samples(models=models, runs_ns=runs, target="wasm"), batch=2, seed=0, peaks=peaks)
    assert [(row.gmacs, row.peak_share) for row in rows] == [(10, 0.25), (10, 0.125), (10, None), (None, None)]
    rows = summarize(samples(models=models, runs_ns=runs, threads=2), batch=2, seed=0, peaks=peaks)
    assert [row.peak_share for row in rows] == [None, 0.0625, None, None]


def test_a_control_is_compared_with_the_first_model() -> None:
    measured = samples([100] * 8, [300] * 8, control=(110,) * 8, target="wasm (Chromium)", threads=4, caches="cold")
    control = summarize_control(measured, seed=0)
    assert control is not None
    assert (control.target, control.threads, control.caches) == ("wasm (Chromium)", 4, "cold")
    assert control.ratio == 1.1
    assert control.ratio_interval == Interval(low=1.1, high=1.1)
    assert control.samples_ns == (110,) * 8
    assert summarize_control(samples([100]), seed=0) is None


def test_samples_that_are_not_paired_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"ran \[2, 3, 2\] times; each has to run once in every round"):
        summarize(samples([1, 1], [1, 1, 1]), batch=1, seed=0)
    with pytest.raises(ConfigError, match=r"ran \[0, 0\] times"):
        summarize(samples([]), batch=1, seed=0)
    with pytest.raises(ConfigError, match=r"ran \[2, 1\] times"):
        summarize_control(samples([1, 1], control=(1,)), seed=0)
    with pytest.raises(ConfigError, match=r"the clock did not advance while 0\.onnx ran"):
        summarize(samples([0, 0, 1], [1, 1, 1]), batch=1, seed=0)


def test_samples_of_any_target_become_the_same_report() -> None:
    settings_ = [
        samples([100] * 8, [50] * 8, control=(100,) * 8, target="wasm (Chromium 140, SIMD)", threads=threads)
        for threads in (1, 2)
    ]
    report = bench_report(
        BenchOptions(threads=(1, 2), caches=("warm",), repeats=8, warmup=3, seed=5),
        settings_,
        environment=describe_environment(),
        machine=describe_machine(),
        activity=Activity(cpus=(), others=None, steal=None),
        warnings=["the page was in the background."],
    )
    assert [(row.model.path, row.target, row.threads, row.ratio) for row in report.latencies] == [
        (path, "wasm (Chromium 140, SIMD)", threads, expected)
        for threads in (1, 2)
        for path, expected in (("0.onnx", 1.0), ("1.onnx", 0.5))
    ]
    assert [control.threads for control in report.controls] == [1, 2]
    assert [model.model.path for model in report.models] == ["0.onnx", "1.onnx"]
    assert (report.repeats, report.warmup, report.seed) == (8, 3, 5)
    assert report.warnings == ("the page was in the background.",)


def test_the_interval_of_a_median_encloses_it() -> None:
    runs = np.random.default_rng(0).integers(900, 1100, 50).tolist()
    interval = median_interval(runs, seed=0)
    assert interval is not None
    assert interval.low <= float(np.median(runs)) <= interval.high
    assert min(runs) <= interval.low < interval.high <= max(runs)
