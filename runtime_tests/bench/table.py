"""A `BenchReport` as tables."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from qil_deploy.runtime_tests.tables import short_names
from qil_deploy.terminal import Table

from .report import NATIVE, BenchReport, Latency, Profile

_UNKNOWN = "-"


def bench_tables(report: BenchReport) -> list[Table]:
    """Return all tables of a report: latencies, other costs of the models, profiles."""
    targets = dict.fromkeys(latency.target for latency in report.latencies)
    profiles = (profile_table(profile) for profile in report.profiles)
    return [*(latency_table(report, target) for target in targets), model_table(report), *profiles]


def latency_table(report: BenchReport, target: str = NATIVE) -> Table:
    """Return one row per model in each setting of a target."""
    environment = report.environment
    latencies = [latency for latency in report.latencies if latency.target == target]
    pinned = {latency.threads: latency.cpus for latency in latencies if target == NATIVE}
    places = [
        f"{threads} on CPU {', '.join(map(str, cpus))}" if cpus else f"{threads} not pinned"
        for threads, cpus in pinned.items()
    ]
    notes = [
        f"{environment.cpu}, {environment.cpus} CPUs, onnxruntime {environment.onnxruntime}, numpy {environment.numpy}",
        *([f"threads: {', '.join(places)}"] if places else []),
    ]
    table = Table(
        f"{target}: latency in ms, batch {report.batch}, {report.repeats} runs after {report.warmup} to warm up",
        ("model", "threads caches", "median", "p95", "spread", "ratio", "95 % interval", "GMAC/s", "of peak"),
        notes,
    )
    names = _names(latency.model.label for latency in latencies)
    for number, (_, setting) in enumerate(groupby(latencies, key=lambda latency: (latency.threads, latency.caches))):
        for index, latency in enumerate(setting):
            cells = _latency_cells(latency)
            table.row(names[latency.model.label], *cells, apart=number > 0 and index == 0)
    return table


def _latency_cells(latency: Latency) -> list[str]:
    interval = latency.ratio_interval
    return [
        f"{latency.threads} {latency.caches}",
        *(_milliseconds(value) for value in (latency.median_ms, latency.p95_ms, latency.iqr_ms)),
        f"{latency.ratio:.3f}",
        "" if interval is None else f"{interval.low:.3f}-{interval.high:.3f}",
        _UNKNOWN if latency.gmacs is None else f"{latency.gmacs:.1f}",
        _UNKNOWN if latency.peak_share is None else f"{latency.peak_share:.0%}",
    ]


def model_table(report: BenchReport) -> Table:
    """Return one row per model: its costs besides latency."""
    peaks = [
        f"{peak.gmacs:.0f} GMAC/s {peak.arithmetic} on {peak.threads} thread{'s'[: peak.threads > 1]}"
        for peak in report.peaks
    ]
    columns = (
        *("model", "file kB", "load ms", "first run ms", "memory MB", "without model", "million MACs"),
        "layers compute in",
    )
    table = Table("files", columns, [f"peak: {', '.join(peaks)}"] if peaks else [])
    names = _names(cost.model.label for cost in report.models)
    for cost in report.models:
        table.row(
            names[cost.model.label],
            f"{cost.model.bytes / 1000:.1f}",
            *(_UNKNOWN if value is None else _milliseconds(value) for value in (cost.load_ms, cost.first_run_ms)),
            _number(cost.peak_bytes, ".1f", 1e6),
            _number(cost.runtime_bytes, ".1f", 1e6),
            _number(cost.macs, ".1f", 1e6),
            cost.arithmetic or _UNKNOWN,
        )
    return table


def profile_table(profile: Profile) -> Table:
    """Return one row per operator."""
    threads = f"{profile.threads} thread{'s'[: profile.threads > 1]}"
    table = Table(
        f"{Path(profile.model.label).name}, {threads}",
        ("operator", "nodes", "us", "share"),
        [f"{profile.runs} runs under the profiler"],
    )
    for operator in profile.operators:
        table.row(operator.operator, str(operator.nodes), f"{operator.median_us:.0f}", f"{operator.share:.1%}")
    return table


def _names(paths: Iterable[str]) -> dict[str, str]:
    """Shorten file names as far as they stay distinct."""
    names = short_names(set(paths))
    stems = {path: name.removesuffix(".onnx") for path, name in names.items()}
    return stems if len(set(stems.values())) == len(names) else names


def _milliseconds(value: float) -> str:
    """Format with four digits, or all digits before the point."""
    return f"{value:.{3 if value < 10 else 2 if value < 100 else 1}f}"


def _number(value: float | None, form: str, unit: float = 1.0) -> str:
    return _UNKNOWN if value is None else format(value / unit, form)
