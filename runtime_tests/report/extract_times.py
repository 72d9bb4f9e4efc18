"""Extract figures from reports of `bench`: latencies, other costs of models, and instructions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PureWindowsPath

from qil_deploy.runtime_tests import bench
from qil_deploy.runtime_tests.bench.report import Failure, Interval
from qil_deploy.runtime_tests.bench.statistics import median_interval
from qil_deploy.runtime_tests.instructions import InstructionsReport

from .facts import describe_place
from .figures import (
    LATENCY,
    NATIVE,
    Control,
    Cost,
    InstructionCount,
    Latency,
    Model,
    NotRun,
    OperatorTime,
    Remark,
    Run,
    copy_fields,
)

_BENCH = "bench"
_KERNELS_LEFT_OUT = "latencies with the kernel library are not shown here; they are in the report of bench."


def of_bench(report: bench.BenchReport) -> Run:
    """Return latencies and costs, and reasons to doubt them.

    A page has one row for each file. Its figures with the kernel library stay in the report of `bench`.
    """
    whole, report = report, _without_kernels(report)
    left_out = len(whole.latencies) - len(report.latencies)
    models = [each.model for group in (report.latencies, report.models, report.profiles) for each in group]
    files = {file.sha256: file for file in map(Model.of, models)}
    firsts: dict[tuple[str, int, str], str] = {}
    for row in report.latencies:
        firsts.setdefault((row.target, row.threads, row.caches), row.model.sha256)
    targets = dict.fromkeys([row.target for row in report.latencies]) or {NATIVE: None}
    return Run(
        name=_BENCH,
        models=tuple(files.values()),
        latencies=tuple(_latency(report, row, firsts[row.target, row.threads, row.caches]) for row in report.latencies),
        controls=tuple(
            copy_fields(
                Control,
                each,
                report,
                model=firsts[each.target, each.threads, each.caches],
                by=_BENCH,
                ratio_low=_low(each.ratio_interval),
                ratio_high=_high(each.ratio_interval),
            )
            for each in report.controls
            if (each.target, each.threads, each.caches) in firsts
        ),
        profiles=tuple(
            copy_fields(OperatorTime, each, profile, model=profile.model.sha256, microseconds=each.median_us)
            for profile in report.profiles
            for each in profile.operators
        ),
        costs=tuple(copy_fields(Cost, cost, model=cost.model.sha256) for cost in report.models),
        environments=tuple(
            describe_place(target, _BENCH, report.environment, report.machine, report.activity) for target in targets
        ),
        not_run=_failed(report.failures, _BENCH),
        remarks=tuple(
            Remark(text=f"bench: {text}", grave=False, about=LATENCY)
            for text in (*report.warnings, *([_KERNELS_LEFT_OUT] if left_out else []))
        ),
    )


def _without_kernels(report: bench.BenchReport) -> bench.BenchReport:
    return replace(
        report,
        latencies=tuple(each for each in report.latencies if not each.model.kernels),
        models=tuple(each for each in report.models if not each.model.kernels),
        profiles=tuple(each for each in report.profiles if not each.model.kernels),
    )


def of_instructions(report: InstructionsReport) -> Run:
    """Return instructions counted on an emulated target."""
    files = tuple(Model.of(each.model) for each in report.models)
    return Run(
        name=report.target,
        models=files,
        instructions=tuple(
            copy_fields(InstructionCount, each, report, model=each.model.sha256, first=files[0].sha256)
            for each in report.models
        ),
        environments=()
        if report.environment is None
        else (describe_place(report.target, "instructions", report.environment),),
        not_run=_failed(report.failures, report.target),
        remarks=tuple(Remark(text=f"{report.target}: {warning}", grave=False) for warning in report.warnings),
    )


def _failed(failures: Sequence[Failure], target: str) -> tuple[NotRun, ...]:
    """Return models that could not be measured; reports know only their paths."""
    return tuple(
        NotRun(model=None, name=PureWindowsPath(each.path).name, target=target, failed=True, reason=each.reason)
        for each in failures
    )


def _latency(report: bench.BenchReport, row: bench.Latency, first: str) -> Latency:
    median = median_interval(row.samples_ns, seed=abs(report.seed))
    return copy_fields(
        Latency,
        row,
        report,
        model=row.model.sha256,
        by=_BENCH,
        runs=len(row.samples_ns),
        median=row.median_ms,
        p95=row.p95_ms,
        least=row.min_ms,
        spread=row.iqr_ms,
        median_low=None if median is None else median.low / 1e6,
        median_high=None if median is None else median.high / 1e6,
        ratio_low=_low(row.ratio_interval),
        ratio_high=_high(row.ratio_interval),
        first=first,
    )


def _low(interval: Interval | None) -> float | None:
    return None if interval is None else interval.low


def _high(interval: Interval | None) -> float | None:
    return None if interval is None else interval.high
