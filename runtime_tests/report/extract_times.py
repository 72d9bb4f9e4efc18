"""Figures out of what `bench` reports: latencies, what models cost besides, and instructions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PureWindowsPath

from qil_deploy.runtime_tests import bench
from qil_deploy.runtime_tests.bench.report import Failure
from qil_deploy.runtime_tests.bench.statistics import median_interval
from qil_deploy.runtime_tests.instructions import InstructionsReport

from .facts import describe_place
from .figures import (
    LATENCY,
    NATIVE,
    NOTHING,
    Control,
    Cost,
    InstructionCount,
    Latency,
    Model,
    NotRun,
    OperatorTime,
    Remark,
    Run,
)


def of_bench(report: bench.BenchReport) -> Run:
    """Return latencies and costs, and what makes them doubtful."""
    models = [each.model for group in (report.latencies, report.models, report.profiles) for each in group]
    files = {file.sha256: file for file in map(Model.of, models)}
    firsts: dict[tuple[str, int, str], str] = {}
    for row in report.latencies:
        firsts.setdefault((row.target, row.threads, row.caches), row.model.sha256)
    targets = dict.fromkeys([row.target for row in report.latencies]) or {NATIVE: None}
    return replace(
        NOTHING,
        models=tuple(files.values()),
        latencies=tuple(_latency(report, row, firsts[row.target, row.threads, row.caches]) for row in report.latencies),
        controls=tuple(
            Control(
                model=firsts[each.target, each.threads, each.caches],
                by="bench",
                target=each.target,
                threads=each.threads,
                batch=report.batch,
                caches=each.caches,
                ratio=each.ratio,
                ratio_low=None if each.ratio_interval is None else each.ratio_interval.low,
                ratio_high=None if each.ratio_interval is None else each.ratio_interval.high,
            )
            for each in report.controls
            if (each.target, each.threads, each.caches) in firsts
        ),
        profiles=tuple(
            OperatorTime(
                model=profile.model.sha256,
                threads=profile.threads,
                operator=each.operator,
                nodes=each.nodes,
                microseconds=each.median_us,
                share=each.share,
            )
            for profile in report.profiles
            for each in profile.operators
        ),
        costs=tuple(
            Cost(
                model=cost.model.sha256,
                macs=cost.macs,
                load_ms=cost.load_ms,
                first_run_ms=cost.first_run_ms,
                peak_bytes=cost.peak_bytes,
                runtime_bytes=cost.runtime_bytes,
            )
            for cost in report.models
        ),
        environments=tuple(
            describe_place(target, "bench", report.environment, report.machine, report.activity) for target in targets
        ),
        not_run=_failed(report.failures, "bench"),
        remarks=tuple(Remark(text=f"bench: {warning}", grave=False, about=LATENCY) for warning in report.warnings),
    )


def of_instructions(report: InstructionsReport) -> Run:
    """Return instructions counted on an emulated target."""
    files = tuple(Model.of(each.model) for each in report.models)
    return replace(
        NOTHING,
        models=files,
        instructions=tuple(
            InstructionCount(
                model=each.model.sha256,
                target=report.target,
                batch=report.batch,
                instructions=each.instructions,
                spread=each.spread,
                ratio=each.ratio,
                first=files[0].sha256,
            )
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
    return Latency(
        model=row.model.sha256,
        by="bench",
        target=row.target,
        threads=row.threads,
        batch=report.batch,
        caches=row.caches,
        runs=len(row.samples_ns),
        median=row.median_ms,
        p95=row.p95_ms,
        least=row.min_ms,
        spread=row.iqr_ms,
        median_low=None if median is None else median.low / 1e6,
        median_high=None if median is None else median.high / 1e6,
        ratio=row.ratio,
        ratio_low=None if row.ratio_interval is None else row.ratio_interval.low,
        ratio_high=None if row.ratio_interval is None else row.ratio_interval.high,
        first=first,
        gmacs=row.gmacs,
        peak_share=row.peak_share,
    )
