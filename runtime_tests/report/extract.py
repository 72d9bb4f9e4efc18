"""Extract figures from reports of comparisons, and the findings of `doctor`."""

from __future__ import annotations

from qil_deploy.runtime_tests.backends import onnx_backend_name
from qil_deploy.runtime_tests.differences import describe_difference
from qil_deploy.runtime_tests.doctor.diagnosis import FirstDiagnosis
from qil_deploy.runtime_tests.sessions import OPTIMIZATION_LEVELS
from qil_deploy.runtime_tests.targets.report import DeviceReport, LevelResult, TargetResult, TargetsReport
from qil_deploy.runtime_tests.verify import VerifyReport

from .facts import describe_place
from .figures import NATIVE, Accuracy, Exactness, Finding, Latency, Model, NotRun, Remark, Run, copy_fields, merge

RUNTIME = "ONNX Runtime"
_REFERENCE = "integer reference"


def of_verify(report: VerifyReport) -> Run:
    """Return the comparisons of logits, and accuracies."""
    file = Model.of(report.model)
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
            elements=report.images * (report.classes if report.numbers is None else report.numbers),
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
    return Run(
        name="verify",
        models=(file,),
        exactness=exactness,
        accuracies=tuple(
            Accuracy(model=file.sha256, backend=name, images=report.images, accuracy=accuracy)
            for name, accuracy in accuracies
            if accuracy is not None and report.metric == "top-1"
        ),
        environments=(describe_place(NATIVE, "verify", report.environment),),
        remarks=(
            *(Remark(text=f"{file.name}: {warning}", grave=False) for warning in report.warnings),
            *(() if counted else (_contradiction(file.name, report.exact),)),
        ),
    )


def of_targets(report: TargetsReport) -> Run:
    """Return comparisons of codes and logits on targets, their latency, and the runs that are missing."""
    file = Model.of(report.model)
    counted = report.exact is None or report.exact == (
        not any(result.failed for result in report.targets)
        and all(device.differing == 0 for result in report.targets for device in result.reports)
    )
    remarks = () if counted else (_contradiction(file.name, report.exact),)
    own = Run(name=file.name, models=(file,), remarks=remarks)
    return merge(own.name, own, *(_of_target(file, result) for result in report.targets))


def of_device(report: DeviceReport, target: str) -> Run:
    """Return the same from a report of `device_runner.py`; `target` is its name."""
    file = Model.measured(report.model, report.sha256, None)
    return _of_device(file, target, report)


def of_diagnosis(report: FirstDiagnosis) -> Run:
    """Return the findings of `doctor`, in the present or the first version of its report."""
    file = Model.of(report.model)
    return Run(
        name="doctor",
        models=(file,),
        environments=(describe_place(NATIVE, "doctor", report.environment),),
        diagnosed=(file.sha256,),
        findings=tuple(copy_fields(Finding, each, model=file.sha256) for each in report.findings),
    )


def _contradiction(name: str, exact: bool | None) -> Remark:
    said = "equal" if exact else "different"
    return Remark(
        text=f"{name}: a report says that the model is {said}, and its own counts say otherwise; it was changed after "
        "it was written. The counts are shown.",
        grave=True,
    )


def _of_target(file: Model, result: TargetResult) -> Run:
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
    own = Run(name=result.target, models=(file,), not_run=not_run, remarks=remarks)
    return merge(own.name, own, *(_of_device(file, result.target, device) for device in fitting))


def _of_device(file: Model, target: str, report: DeviceReport) -> Run:
    exactness = tuple(_of_level(file, target, report, level) for level in report.levels) if report.compared else ()
    latencies = [
        Latency(
            model=file.sha256,
            by="while verifying, with kernels" if report.kernels else "while verifying",
            target=target,
            threads=report.threads,
            batch=latency.images,
            caches="warm",
            runs=latency.runs,
            median=latency.median_ms,
            p95=latency.p95_ms,
        )
        for latency in [report.latency]
        if latency is not None
    ]
    remark = Remark(text=f"{file.name}: {target} ran it with nothing to compare with.", grave=True)
    return Run(
        name=target,
        models=(file,),
        exactness=exactness,
        latencies=tuple(latencies),
        environments=(describe_place(target, "codes", report.environment),),
        remarks=() if report.compared else (remark,),
    )


def _of_level(file: Model, target: str, report: DeviceReport, level: LevelResult) -> Exactness:
    tensors = (*level.outputs, *level.tensors)
    first = level.first_difference
    return Exactness(
        model=file.sha256,
        target=target,
        backend=onnx_backend_name(level.level, kernels=True) if report.kernels else RUNTIME,
        level=None if report.kernels else level.level,
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
