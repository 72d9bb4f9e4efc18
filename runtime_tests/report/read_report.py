"""Read one report of any kind, and validate and extract its figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final, get_args

from qil_deploy.errors import DataError
from qil_deploy.reports import read_report_of
from qil_deploy.runtime_tests.bench import BenchReport
from qil_deploy.runtime_tests.doctor.diagnosis import Diagnosis, FirstDiagnosis
from qil_deploy.runtime_tests.instructions import InstructionsReport
from qil_deploy.runtime_tests.targets.check_report import check_consistency
from qil_deploy.runtime_tests.targets.report import DeviceReport, TargetsReport
from qil_deploy.runtime_tests.verify import VerifyReport

from .deployment import DeploymentReport
from .extract import of_device, of_diagnosis, of_targets, of_verify
from .extract_times import of_bench, of_instructions
from .figures import Run

SingleReport = (
    VerifyReport | TargetsReport | DeviceReport | BenchReport | InstructionsReport | Diagnosis | FirstDiagnosis
)
"""What one command or device wrote; `DeploymentReport` is of many."""

_CLASSES: Final[tuple[type[SingleReport | DeploymentReport], ...]] = (*get_args(SingleReport), DeploymentReport)
_LARGEST: Final = 2**28  # bytes; reports of large networks have some 2**20


def read_any_report(path: Path) -> SingleReport | DeploymentReport:
    """Read a report of any kind; DataError for any other file."""
    try:
        if not path.is_file():
            raise DataError(f"there is no file {path}; name a JSON file or a folder of them.")
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if size > _LARGEST:
        raise DataError(f"{path} has {size:,} bytes; no report is larger than {_LARGEST:,}.")
    return read_report_of(path, _CLASSES)


def figures_of(path: Path, report: SingleReport) -> Run:
    """Return the figures of a report, as a run without a name; DataError if they are impossible."""
    _check_devices(path, report)
    run = _extract(path, report)
    check_figures(path, run)
    return run


def _extract(path: Path, report: SingleReport) -> Run:
    """Return the figures of a report."""
    match report:
        case VerifyReport():
            return of_verify(report)
        case TargetsReport():
            return of_targets(report)
        case DeviceReport():
            return of_device(report, path.stem)
        case BenchReport():
            return of_bench(report)
        case InstructionsReport():
            return of_instructions(report)
        case FirstDiagnosis():
            return of_diagnosis(report)


def _check_devices(path: Path, report: SingleReport) -> None:
    """Raise DataError if a device's report contradicts itself."""
    devices = [report] if isinstance(report, DeviceReport) else []
    if isinstance(report, TargetsReport):
        devices = [device for result in report.targets for device in result.reports]
    for device in devices:
        try:
            check_consistency(device)
        except DataError as error:
            raise DataError(f"{path} is damaged: {error}.") from error


def check_figures(path: Path, run: Run) -> None:
    """Raise DataError if a count or a time is impossible."""
    for row in run.exactness:
        if not 0 <= row.differing <= row.elements:
            raise DataError(f"{path} is damaged: of {row.elements:,} {row.what}, {row.differing:,} differ.")
    for accuracy in run.accuracies:
        if not 0 <= accuracy.accuracy <= 1:
            raise DataError(f"{path} is damaged: an accuracy is {accuracy.accuracy:g}.")
    for latency in run.latencies:
        if not 0 < latency.median < math.inf:
            raise DataError(f"{path} is damaged: a median latency is {latency.median:g} ms.")
    for counted in run.instructions:
        if counted.instructions <= 0:
            raise DataError(f"{path} is damaged: an inference of {counted.instructions:,} instructions.")
