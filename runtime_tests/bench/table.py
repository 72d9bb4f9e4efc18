"""A `BenchReport` as tables that fit a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from qil_deploy.runtime_tests.tables import new_table, short_names

from .report import NATIVE, BenchReport, Latency, Profile

_UNKNOWN = "-"


def bench_tables(report: BenchReport) -> list[Table]:
    """Return every table of a report: latencies, what else the models cost, profiles."""
    targets = dict.fromkeys(latency.target for latency in report.latencies)
    profiles = (profile_table(profile) for profile in report.profiles)
    return [*(latency_table(report, target) for target in targets), model_table(report), *profiles]


def latency_table(report: BenchReport, target: str = NATIVE) -> Table:
    """Return one row per model in each setting of a target."""
    environment = report.environment
    latencies = [latency for latency in report.latencies if latency.target == target]
    pinned = {latency.threads: latency.cpus for latency in latencies if target == NATIVE}
    places = [
        f"{threads} on {' '.join(map(str, cpus))}" if cpus else f"{threads} not pinned"
        for threads, cpus in pinned.items()
    ]
    caption = [
        f"{environment.cpu}, {environment.cpus} CPUs, onnxruntime {environment.onnxruntime}, numpy {environment.numpy}"
    ]
    if places:
        caption.append(f"threads: {', '.join(places)}")
    table = new_table(
        title=(
            f"{escape(target)}: latency in ms, batch {report.batch}, {report.repeats} runs after {report.warmup} "
            "to warm up"
        ),
        caption="\n".join(map(escape, caption)),
    )
    table.add_column("model", overflow="fold")
    for column in ("threads\ncaches", "median", "p95", "spread", "ratio", "95 %\ninterval", "GMAC\n/s", "of\npeak"):
        table.add_column(column, justify="right", no_wrap=True)
    names = _names(latency.model.path for latency in latencies)
    for _, setting in groupby(latencies, key=lambda latency: (latency.threads, latency.caches)):
        table.add_section()
        for latency in setting:
            table.add_row(escape(names[latency.model.path]), *_latency_cells(latency))
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
    """Return one row per model: what it costs besides its latency."""
    peaks = [
        f"{peak.gmacs:.0f} GMAC/s {peak.arithmetic} on {peak.threads} thread{'s'[: peak.threads > 1]}"
        for peak in report.peaks
    ]
    table = new_table(title="files", caption=f"peak: {', '.join(peaks)}" if peaks else "")
    table.add_column("model", overflow="fold")
    for column in (
        "file kB",
        "load\nms",
        "first run\nms",
        "memory\nMB",
        "without\nmodel",
        "million\nMACs",
        "layers\ncompute in",
    ):
        table.add_column(column, justify="right")
    names = _names(cost.model.path for cost in report.models)
    for cost in report.models:
        table.add_row(
            escape(names[cost.model.path]),
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
    table = new_table(
        title=f"{escape(Path(profile.model.path).name)}, {threads}",
        caption=f"{profile.runs} runs under the profiler",
    )
    table.add_column("operator", no_wrap=True)
    for column in ("nodes", "us", "share"):
        table.add_column(column, justify="right")
    for operator in profile.operators:
        cells = str(operator.nodes), f"{operator.median_us:.0f}", f"{operator.share:.1%}"
        table.add_row(escape(operator.operator), *cells)
    return table


def _names(paths: Iterable[str]) -> dict[str, str]:
    """Name files as shortly as leaves them apart."""
    names = short_names(set(paths))
    stems = {path: name.removesuffix(".onnx") for path, name in names.items()}
    return stems if len(set(stems.values())) == len(names) else names


def _milliseconds(value: float) -> str:
    """Show four digits, or all that stand before the point."""
    return f"{value:.{3 if value < 10 else 2 if value < 100 else 1}f}"


def _number(value: float | None, form: str, unit: float = 1.0) -> str:
    return _UNKNOWN if value is None else format(value / unit, form)
