"""Medians, ratios and their intervals from samples of any origin, as functions of nanoseconds per round.

In each round every model runs once, so that sample `i` of one model is paired with sample `i` of every other. Ratios
are of medians; the bootstrap says how certain they are: rounds are drawn with replacement, the same for both models,
and
the ratio is computed anew, thousands of times. What disturbs a machine lasts longer than a round, so blocks of
`n^(1/3)` consecutive rounds are drawn (the circular block bootstrap of Politis and Romano, 1992), not single ones; what
hits both models of a round alike cancels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qil_deploy.errors import ConfigError
from qil_deploy.runtime_tests.environment import Environment
from qil_deploy.runtime_tests.machine import Activity, Machine

from .noise import control_warnings
from .options import BenchOptions
from .report import NATIVE, WARM, BenchReport, Control, Failure, Interval, Latency, ModelCost, Peak

RESAMPLES = 2000
COVERAGE = 95.0
# With fewer, not even the smallest and the largest of them enclose a median with 95 %: 2 * 0.5 ** 6 = 3 %.
FEWEST_ROUNDS = 6
_MILLISECOND = 1e6
_CHUNK = 2**20  # samples that are drawn at once


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples of one setting: one target, one number of threads, one state of the caches.

    Attributes:
        target: "native", or a description such as "wasm (Chromium 140, SIMD)".
        threads: threads of the runtime.
        cpus: logical processors that they were pinned to; none if they were not.
        caches: "warm" or "cold".
        models: every model that was run; ratios refer to the first.
        runs_ns: for each of them its measured runs, one per round.
        control_ns: the same of the first model's second run in each round; none if it did not run twice.
    """

    target: str = NATIVE
    threads: int
    cpus: tuple[int, ...] = ()
    caches: str = WARM
    models: tuple[ModelCost, ...]
    runs_ns: tuple[tuple[int, ...], ...]
    control_ns: tuple[int, ...] = ()


def bench_report(
    options: BenchOptions,
    settings: Sequence[Samples],
    *,
    environment: Environment,
    machine: Machine,
    activity: Activity,
    peaks: Sequence[Peak] = (),
    failures: Sequence[Failure] = (),
    warnings: Sequence[str] = (),
) -> BenchReport:
    """Return the report on samples of any origin.

    Args:
        options: how they were taken.
        settings: the samples.
        environment, machine, activity: where, and what else ran there.
        peaks: what the processor can do, if that is known.
        failures: models without samples.
        warnings: what is doubtful about the figures; what controls show is added.

    Raises:
        ConfigError: see `summarize`.
    """
    controls = [summarize_control(samples, seed=options.seed) for samples in settings]
    found = tuple(control for control in controls if control is not None)
    models = {cost.model.label: cost for samples in settings for cost in samples.models}
    return BenchReport(
        schema=BenchReport.SCHEMA,
        batch=options.batch,
        repeats=options.repeats,
        warmup=options.warmup,
        seed=options.seed,
        latencies=tuple(
            latency
            for samples in settings
            for latency in summarize(samples, batch=options.batch, seed=options.seed, peaks=peaks)
        ),
        controls=found,
        models=tuple(models.values()),
        peaks=tuple(peaks),
        failures=tuple(failures),
        warnings=(*warnings, *control_warnings(found)),
        environment=environment,
        machine=machine,
        activity=activity,
    )


def summarize(samples: Samples, *, batch: int, seed: int, peaks: Sequence[Peak] = ()) -> tuple[Latency, ...]:
    """Return the figures of every model of a setting.

    Args:
        samples: what was measured.
        batch: images per run.
        seed: of the bootstrap.
        peaks: what this processor can do; shares refer to the one of the model's arithmetic and as many threads.

    Raises:
        ConfigError: the clock did not advance while the first model ran, or a model has no runs, or not as many as the
            first.
    """
    _check(samples)
    first = samples.runs_ns[0]
    latencies = []
    for index, (cost, runs) in enumerate(zip(samples.models, samples.runs_ns, strict=True)):
        median = float(np.median(runs)) / _MILLISECOND
        quarter, three_quarters, p95 = (float(value) for value in np.percentile(runs, [25, 75, 95]) / _MILLISECOND)
        gmacs = None if cost.macs is None or median <= 0 else cost.macs * batch / median / 1e6
        latencies.append(
            Latency(
                model=cost.model,
                target=samples.target,
                threads=samples.threads,
                cpus=samples.cpus,
                caches=samples.caches,
                median_ms=median,
                p95_ms=p95,
                min_ms=min(runs) / _MILLISECOND,
                iqr_ms=three_quarters - quarter,
                ratio=ratio(runs, first),
                ratio_interval=None if index == 0 else ratio_interval(runs, first, seed=seed),
                gmacs=gmacs,
                peak_share=_share(gmacs, cost.arithmetic, samples.threads, peaks),
                samples_ns=tuple(runs),
            )
        )
    return tuple(latencies)


def summarize_control(samples: Samples, *, seed: int) -> Control | None:
    """Return the result of the first model's second run in each round; None if it did not run twice.

    Raises:
        ConfigError: see `summarize`.
    """
    if not samples.control_ns:
        return None
    _check(samples)
    return Control(
        target=samples.target,
        threads=samples.threads,
        caches=samples.caches,
        ratio=ratio(samples.control_ns, samples.runs_ns[0]),
        ratio_interval=ratio_interval(samples.control_ns, samples.runs_ns[0], seed=seed),
        samples_ns=tuple(samples.control_ns),
    )


def ratio(runs: Sequence[int], first: Sequence[int]) -> float:
    """Return the median of `runs` divided by that of `first`."""
    return float(np.median(runs) / np.median(first))


def ratio_interval(runs: Sequence[int], first: Sequence[int], *, seed: int) -> Interval | None:
    """Return the interval of the ratio of two medians (module docstring), for samples that are paired by round.

    None if there are fewer than `FEWEST_ROUNDS`.
    """
    count = len(first)
    if count < FEWEST_ROUNDS:
        return None
    generator = np.random.default_rng(seed)
    pairs = np.array([runs, first], np.float64)
    ratios = np.concatenate([_resampled(pairs, drawn) for drawn in _draw_rounds(count, generator)])
    return _interval(ratios)


def median_interval(runs: Sequence[int], *, seed: int) -> Interval | None:
    """Return the interval of the median of one model's samples, in nanoseconds, by the same bootstrap.

    None if there are fewer than `FEWEST_ROUNDS`.
    """
    if len(runs) < FEWEST_ROUNDS:
        return None
    generator = np.random.default_rng(seed)
    times = np.array(runs, np.float64)
    medians = np.concatenate([np.median(times[drawn], axis=1) for drawn in _draw_rounds(len(runs), generator)])
    return _interval(medians)


def _interval(resampled: NDArray[np.float64]) -> Interval:
    """Return the interval that contains `COVERAGE` percent of the resampled values."""
    low, high = np.percentile(resampled, [(100 - COVERAGE) / 2, (100 + COVERAGE) / 2])
    return Interval(low=float(low), high=float(high))


def _resampled(pairs: NDArray[np.float64], drawn: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the ratio of medians for each row of `drawn` rounds."""
    numerators, denominators = np.median(pairs[:, drawn], axis=2)
    # A clock that hardly advances may give medians of zero: then nothing is known, and the interval says so.
    ratios: NDArray[np.float64] = np.full(len(numerators), np.finfo(np.float64).max)
    np.divide(numerators, denominators, out=ratios, where=denominators > 0)
    return ratios


def _draw_rounds(count: int, generator: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yield `RESAMPLES` rows of `count` rounds, in blocks of consecutive ones, a few rows at a time."""
    length = max(1, round(count ** (1 / 3)))
    blocks = -(-count // length)
    rows = max(1, _CHUNK // count)
    for start in range(0, RESAMPLES, rows):
        starts = generator.integers(0, count, (min(rows, RESAMPLES - start), blocks, 1))
        yield ((starts + np.arange(length)) % count).reshape(len(starts), -1)[:, :count]


def _share(gmacs: float | None, arithmetic: str | None, threads: int, peaks: Sequence[Peak]) -> float | None:
    found = [peak.gmacs for peak in peaks if peak.arithmetic == arithmetic and peak.threads == threads]
    return None if gmacs is None or not found else gmacs / max(found)


def _check(samples: Samples) -> None:
    counts = [len(runs) for runs in (*samples.runs_ns, samples.control_ns or samples.runs_ns[0])]
    if min(counts) == 0 or len(set(counts)) != 1:
        raise ConfigError(f"the models ran {counts} times; each has to run once in every round.")
    if np.median(samples.runs_ns[0]) <= 0:
        path = samples.models[0].model.path
        raise ConfigError(f"the clock did not advance while {path} ran; measure with a finer clock, or a larger batch.")
