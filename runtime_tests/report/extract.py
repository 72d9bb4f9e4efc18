"""Figures out of each kind of report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import PureWindowsPath

from qil_deploy.runtime_tests import bench
from qil_deploy.runtime_tests.backends import onnx_backend_name
from qil_deploy.runtime_tests.bench.report import Failure
from qil_deploy.runtime_tests.bench.statistics import median_interval
from qil_deploy.runtime_tests.differences import describe_difference
from qil_deploy.runtime_tests.doctor.diagnose import Diagnosis
from qil_deploy.runtime_tests.instructions import InstructionsReport
from qil_deploy.runtime_tests.reports import ModelFile
from qil_deploy.runtime_tests.sessions import OPTIMIZATION_LEVELS
from qil_deploy.runtime_tests.targets.report import DeviceReport, LevelResult, TargetResult, TargetsReport
from qil_deploy.runtime_tests.verify import VerifyReport

from .facts import describe_place
from .figures import (
    Accuracy,
    Control,
    Cost,
    Environment,
    Exactness,
    Finding,
    InstructionCount,
    Latency,
    NotRun,
    OperatorTime,
    Remark,
)

NATIVE = "native"
RUNTIME = "ONNX Runtime"
_REFERENCE = "integer reference"


@dataclass(frozen=True, kw_only=True)
class MeasuredFile:
    """A model as a report names it."""

    path: str
    sha256: str
    bytes: int | None

    @property
    def name(self) -> str:
        """Its name without folders, be they separated as on Windows or not."""
        return PureWindowsPath(self.path).name or self.path


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one report holds, of the fields of `figures.Run`."""

    files: tuple[MeasuredFile, ...]
    exactness: tuple[Exactness, ...] = ()
    accuracies: tuple[Accuracy, ...] = ()
    latencies: tuple[Latency, ...] = ()
    controls: tuple[Control, ...] = ()
    profiles: tuple[OperatorTime, ...] = ()
    costs: tuple[Cost, ...] = ()
    instructions: tuple[InstructionCount, ...] = ()
    environments: tuple[Environment, ...] = ()
    not_run: tuple[NotRun, ...] = ()
    diagnosed: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    remarks: tuple[Remark, ...] = ()


def merge(*parts: Figures) -> Figures:
    """Put figures together, in order."""
    return Figures(
        **{field.name: tuple(row for part in parts for row in getattr(part, field.name)) for field in fields(Figures)}
    )


def of_verify(report: VerifyReport) -> Figures:
    """Return logits compared and accuracies."""
    file = _file(report.model)
    levels = {onnx_backend_name(level): level for level in OPTIMIZATION_LEVELS}
    firsts = {
        name: describe_difference(comparison)
        for comparison in report.comparisons
        for name in comparison.between
        if comparison.difference is not None
    }
    exactness = tuple(
        Exactness(
            model=file.sha256,
            target=NATIVE,
            backend=RUNTIME if backend.name in levels else backend.name,
            level=levels.get(backend.name),
            what="logits",
            reference=report.reference,
            images=report.images,
            elements=report.images * report.classes,
            differing=backend.differing_logits,
            changed_classes=backend.changed_predictions,
            must_equal=backend.must_equal,
            first=firsts.get(backend.name) if backend.must_equal else None,
        )
        for backend in report.backends
    )
    accuracies = [(report.reference, report.reference_accuracy)]
    accuracies += [(backend.name, backend.accuracy) for backend in report.backends]
    counted = report.exact is None or report.exact == all(row.differing == 0 for row in exactness if row.must_equal)
    return Figures(
        files=(file,),
        exactness=exactness,
        accuracies=tuple(
            Accuracy(model=file.sha256, backend=name, images=report.images, accuracy=accuracy)
            for name, accuracy in accuracies
        ),
        environments=(describe_place(NATIVE, "verify", report.environment),),
        remarks=(
            *(Remark(text=f"{file.name}: {warning}", grave=False) for warning in report.warnings),
            *(() if counted else (_contradiction(file.name, report.exact),)),
        ),
    )


def of_targets(report: TargetsReport) -> Figures:
    """Return codes and logits compared on targets, their latency, and what was not run."""
    file = _file(report.model)
    counted = report.exact is None or report.exact == (
        not any(result.failed for result in report.targets)
        and all(device.differing == 0 for result in report.targets for device in result.reports)
    )
    remarks = () if counted else (_contradiction(file.name, report.exact),)
    return merge(Figures(files=(file,), remarks=remarks), *(_of_target(file, result) for result in report.targets))


def of_device(report: DeviceReport, target: str) -> Figures:
    """Return the same of what `device_runner.py` wrote; `target` is what it is called."""
    file = MeasuredFile(path=report.model, sha256=report.sha256, bytes=None)
    return _of_device(file, target, report)


def of_bench(report: bench.BenchReport) -> Figures:
    """Return latencies and costs, and what makes them doubtful."""
    models = [each.model for group in (report.latencies, report.models, report.profiles) for each in group]
    files = {file.sha256: file for file in map(_file, models)}
    firsts: dict[tuple[str, int, str], str] = {}
    for row in report.latencies:
        firsts.setdefault((row.target, row.threads, row.caches), row.model.sha256)
    targets = dict.fromkeys([row.target for row in report.latencies]) or {NATIVE: None}
    return Figures(
        files=tuple(files.values()),
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
        remarks=tuple(Remark(text=f"bench: {warning}", grave=False, about="latency") for warning in report.warnings),
    )


def of_instructions(report: InstructionsReport) -> Figures:
    """Return instructions counted on an emulated target."""
    files = tuple(_file(each.model) for each in report.models)
    return Figures(
        files=files,
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


def of_diagnosis(report: Diagnosis) -> Figures:
    """Return what `doctor` found."""
    file = _file(report.model)
    return Figures(
        files=(file,),
        environments=(describe_place(NATIVE, "doctor", report.environment),),
        diagnosed=(file.sha256,),
        findings=tuple(
            Finding(model=file.sha256, severity=each.severity, what=each.what, count=each.count, remedy=each.remedy)
            for each in report.findings
        ),
    )


def _failed(failures: Sequence[Failure], target: str) -> tuple[NotRun, ...]:
    """Return models that could not be measured; reports know only their paths."""
    return tuple(
        NotRun(model=None, name=PureWindowsPath(each.path).name, target=target, failed=True, reason=each.reason)
        for each in failures
    )


def _file(model: ModelFile) -> MeasuredFile:
    return MeasuredFile(path=model.path, sha256=model.sha256, bytes=model.bytes)


def _contradiction(name: str, exact: bool | None) -> Remark:
    said = "equal" if exact else "different"
    return Remark(
        text=f"{name}: a report says that the model is {said}, and its own counts say otherwise; it was changed after "
        "it was written. The counts are shown.",
        grave=True,
    )


def _of_target(file: MeasuredFile, result: TargetResult) -> Figures:
    """Return the figures of one target."""
    reasons = ((False, result.skipped), (True, result.failed))
    not_run = tuple(
        NotRun(model=file.sha256, name=file.name, target=result.target, failed=failed, reason=reason)
        for failed, reason in reasons
        if reason is not None
    )
    fitting = [device for device in result.reports if device.sha256 == file.sha256]
    other = Remark(
        text=f"{result.target} ran another file than {file.name}, of the same name perhaps; what it found is left out.",
        grave=True,
    )
    remarks = () if len(fitting) == len(result.reports) else (other,)
    own = Figures(files=(file,), not_run=not_run, remarks=remarks)
    return merge(own, *(_of_device(file, result.target, device) for device in fitting))


def _of_device(file: MeasuredFile, target: str, report: DeviceReport) -> Figures:
    exactness = tuple(_of_level(file, target, report, level) for level in report.levels) if report.compared else ()
    latency = report.latency
    latencies = (
        ()
        if latency is None
        else (
            Latency(
                model=file.sha256,
                by="while verifying",
                target=target,
                threads=report.threads,
                batch=latency.images,
                caches="warm",
                runs=latency.runs,
                median=latency.median_ms,
                p95=latency.p95_ms,
            ),
        )
    )
    remark = Remark(text=f"{file.name}: {target} ran it with nothing to compare with.", grave=True)
    return Figures(
        files=(file,),
        exactness=exactness,
        latencies=latencies,
        environments=(describe_place(target, "codes", report.environment),),
        remarks=() if report.compared else (remark,),
    )


def _of_level(file: MeasuredFile, target: str, report: DeviceReport, level: LevelResult) -> Exactness:
    tensors = (level.logits, *level.tensors)
    first = level.first_difference
    return Exactness(
        model=file.sha256,
        target=target,
        backend=RUNTIME,
        level=level.level,
        what="codes" if level.tensors else "logits",
        reference=_REFERENCE,
        images=report.images,
        elements=sum(tensor.elements for tensor in tensors if tensor.differing is not None),
        differing=level.differing,
        changed_classes=None,
        must_equal=True,
        first=None
        if first is None
        else f"First difference on {target} ({level.level}): {first.differing:,} of {first.elements:,} elements of "
        f"{first.tensor}"
        + ("" if first.largest_step is None else f", by {first.largest_step:g} at most")
        + ("." if first.index is None else f", first at {list(first.index)}."),
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
