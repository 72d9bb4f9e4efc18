"""Read runs: files of JSON, or folders of them, and put their figures together."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from qil_deploy.errors import DataError, OtherSchemaError
from qil_deploy.reports import read_report_of
from qil_deploy.runtime_tests.bench import BenchReport
from qil_deploy.runtime_tests.doctor.diagnosis import Diagnosis, FirstDiagnosis
from qil_deploy.runtime_tests.instructions import InstructionsReport
from qil_deploy.runtime_tests.targets.check_report import check_consistency
from qil_deploy.runtime_tests.targets.report import DeviceReport, TargetsReport
from qil_deploy.runtime_tests.verify import VerifyReport

from .content import read_content
from .deployment import DeploymentReport
from .extract import of_device, of_diagnosis, of_targets, of_verify
from .extract_times import of_bench, of_instructions
from .figures import FILES, Environment, Model, Remark, Run, SourceFile
from .gathered import Figures, MeasuredFile, merge
from .match import compare_runs, setting_of
from .verdict import judge

Readable = (
    VerifyReport
    | TargetsReport
    | DeviceReport
    | BenchReport
    | InstructionsReport
    | Diagnosis
    | FirstDiagnosis
    | DeploymentReport
)

_CLASSES: Final[tuple[type[Readable], ...]] = (
    VerifyReport,
    TargetsReport,
    DeviceReport,
    BenchReport,
    InstructionsReport,
    Diagnosis,
    FirstDiagnosis,
    DeploymentReport,
)
# What else this project writes as JSON, and by which command.
_OTHER_COMMANDS: Final = {
    "qil_deploy.inspect/1": "inspect",
    "qil_deploy.results/1": "demo",
    "qil_deploy.run/1": "train",
    "qil_deploy.sensitivity/1": "sensitivity",
}
_LARGEST: Final = 2**28  # bytes; reports of large networks have some 2**20


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What a path stands for: runs, and remarks about files that are none."""

    runs: list[Run]
    remarks: list[Remark]


def collect(paths: Sequence[Path], *, now: datetime | None = None) -> DeploymentReport:
    """Read runs and say what they come to.

    Args:
        paths: each a JSON file, a folder of them, or a folder of such folders; what an earlier `report` wrote stands
            for all its runs.
        now: what time it is; by default it is asked for.

    Raises:
        DataError: there is no such file or folder, a file that was named is no report, is damaged or of a schema that
            is not known, or a folder has no report that can be read. A file in a folder that cannot be read is a remark
            in the report, and so is what other commands of this project write.
    """
    if not paths:
        raise DataError("there is nothing to report; name a JSON file or a folder of them.")
    found = [_read_folder(path) if path.is_dir() else _read_file(path) for path in paths]
    left_out = [remark for each in found for remark in each.remarks]
    runs = _name([run for each in found for run in each.runs])
    if not runs:
        raise DataError(f"there is nothing to report. {' '.join(remark.text for remark in left_out)}")
    changes, remarks = compare_runs(runs)
    return DeploymentReport(
        schema=DeploymentReport.SCHEMA,
        written=(now or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC"),
        verdict=judge(runs, left_out),
        runs=tuple(runs),
        changes=changes,
        remarks=(*left_out, *remarks),
    )


def _read_file(path: Path) -> _Found:
    try:
        report = _read(path)
    except OtherSchemaError as error:
        return _Found(runs=[], remarks=[_left_out(path, error)])
    if isinstance(report, DeploymentReport):
        return _Found(runs=_earlier(path, report), remarks=[])
    return _Found(runs=[_run(path.stem, [(path, report)], ())], remarks=[])


def _left_out(path: Path, error: OtherSchemaError) -> Remark:
    """Say why a file is left out that another command wrote; raise `error` if none did."""
    command = _OTHER_COMMANDS.get(error.schema) if isinstance(error.schema, str) else None
    if command is None:
        raise error
    text = f"Left out: {path} is what `{command}` wrote; it has no figures that this page shows."
    return Remark(text=text, grave=False, about=FILES)


def _earlier(path: Path, report: DeploymentReport) -> list[Run]:
    """Return the runs of an earlier report, checked like any other."""
    for run in report.runs:
        _check(path, run)
        groups = (
            *(run.exactness, run.accuracies, run.latencies, run.controls, run.profiles, run.costs),
            *(run.instructions, run.findings),
        )
        named = {row.model for group in groups for row in group} | {*run.diagnosed}
        named |= {row.first for row in run.instructions}
        missing = sorted(named.difference(model.sha256 for model in run.models))
        if missing:
            raise DataError(f"{path} is damaged: it has figures of {missing[0][:12]}, which is none of its models.")
    return list(report.runs)


def _read_folder(folder: Path) -> _Found:
    """Return the run that a folder of reports is, or the runs of the folders in it where it holds no JSON itself."""
    try:
        entries = sorted(folder.iterdir())
        folders = [path for path in entries if path.is_dir() and any(path.glob("*.json"))]
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror or error}.") from error
    paths = [path for path in entries if path.suffix == ".json"]
    if folders and not paths:
        return _read_folders(folders)
    runs, remarks = _read_files(folder, paths)
    for path in folders:
        text = f"Left out: the folder {path}; name it, to have it beside {folder}."
        remarks.append(Remark(text=text, grave=False, about=FILES))
    return _Found(runs=runs, remarks=remarks)


def _read_folders(folders: Sequence[Path]) -> _Found:
    """Return each folder as a run of its own; one that has no report is a remark."""
    runs: list[Run] = []
    remarks: list[Remark] = []
    for folder in folders:
        try:
            found = _read_folder(folder)
        except DataError as error:
            remarks.append(Remark(text=f"Left out: {error}", grave=True, about=FILES))
        else:
            runs += found.runs
            remarks += found.remarks
    return _Found(runs=runs, remarks=remarks)


def _read_files(folder: Path, paths: Sequence[Path]) -> tuple[list[Run], list[Remark]]:
    """Return the run that the files of a folder are, or the runs of earlier reports where there is nothing else.

    Returns:
        Runs, with remarks about files that are left out; and these remarks by themselves where there is no run.
    """
    reports, remarks = [], []
    for path in paths:
        try:
            reports.append((path, _read(path)))
        except DataError as error:
            remarks.append(_unread(path, error))
    single = [(path, report) for path, report in reports if not isinstance(report, DeploymentReport)]
    earlier = [(path, report) for path, report in reports if isinstance(report, DeploymentReport)]
    if not reports:
        if remarks and not any(remark.grave for remark in remarks):
            return [], remarks
        reasons = " ".join(remark.text for remark in remarks) or "It has no file that ends in .json."
        raise DataError(f"{folder} has no report that could be read. {reasons}")
    if not single:
        runs = [run for path, report in earlier for run in _earlier(path, report)]
        return ([replace(runs[0], remarks=(*runs[0].remarks, *remarks)), *runs[1:]], []) if runs else ([], remarks)
    for path, _ in earlier:
        text = f"Left out: {path} is an earlier outcome of this command; name the file itself to have it beside others."
        remarks.append(Remark(text=text, grave=False, about=FILES))
    return [_run(folder.resolve().name or str(folder), single, tuple(remarks))], []


def _unread(path: Path, error: DataError) -> Remark:
    """Return the remark about a file of a folder that is left out; a grave one if it may have held a difference."""
    if isinstance(error, OtherSchemaError):
        with contextlib.suppress(DataError):
            return _left_out(path, error)
    return Remark(text=f"Left out: {error}", grave=True, about=FILES)


def _read(path: Path) -> Readable:
    """Read a report of any kind; DataError if it is none."""
    try:
        if not path.is_file():
            raise DataError(f"there is no file {path}; name a JSON file or a folder of them.")
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if size > _LARGEST:
        raise DataError(f"{path} has {size:,} bytes; no report is larger than {_LARGEST:,}.")
    return read_report_of(path, _CLASSES)


def _figures(path: Path, report: Readable) -> Figures:
    _check_devices(path, report)
    if isinstance(report, VerifyReport):
        figures = of_verify(report)
    elif isinstance(report, TargetsReport):
        figures = of_targets(report)
    elif isinstance(report, DeviceReport):
        figures = of_device(report, path.stem)
    elif isinstance(report, BenchReport):
        figures = of_bench(report)
    elif isinstance(report, InstructionsReport):
        figures = of_instructions(report)
    elif isinstance(report, FirstDiagnosis):
        figures = of_diagnosis(report)
    else:
        raise TypeError(f"{type(report).__name__} has no figures of its own")
    _check(path, figures)
    return figures


def _check_devices(path: Path, report: Readable) -> None:
    """Raise DataError if what a device sent contradicts itself."""
    devices = [report] if isinstance(report, DeviceReport) else []
    if isinstance(report, TargetsReport):
        devices = [device for result in report.targets for device in result.reports]
    for device in devices:
        try:
            check_consistency(device)
        except DataError as error:
            raise DataError(f"{path} is damaged: {error}.") from error


def _check(path: Path, figures: Figures | Run) -> None:
    """Raise DataError if there is a count or a time that cannot be."""
    for row in figures.exactness:
        if not 0 <= row.differing <= row.elements:
            raise DataError(f"{path} is damaged: of {row.elements:,} {row.what}, {row.differing:,} differ.")
    for accuracy in figures.accuracies:
        if not 0 <= accuracy.accuracy <= 1:
            raise DataError(f"{path} is damaged: an accuracy is {accuracy.accuracy:g}.")
    for latency in figures.latencies:
        if not 0 < latency.median < math.inf:
            raise DataError(f"{path} is damaged: a median latency is {latency.median:g} ms.")
    for counted in figures.instructions:
        if counted.instructions <= 0:
            raise DataError(f"{path} is damaged: an inference of {counted.instructions:,} instructions.")


def _run(name: str, reports: Sequence[tuple[Path, Readable]], remarks: tuple[Remark, ...]) -> Run:
    """Put the reports of one run together."""
    sources: dict[str, SourceFile] = {}
    parts: list[Figures] = []
    repeated: list[Remark] = []
    places: dict[str, Path] = {}
    for path, report in reports:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest in sources:
            text = f"Left out: {path} has the same content as {sources[digest].path}."
            repeated.append(Remark(text=text, grave=False, about=FILES))
            continue
        sources[digest] = SourceFile(path=str(path), schema=report.schema, sha256=digest)
        parts.append(_figures(path, report))
        for file in parts[-1].files:
            places.setdefault(file.sha256, path.parent)
    figures = merge(*_tell_apart(parts, [Path(source.path).stem for source in sources.values()]))
    models = tuple(_models(figures.files, places))
    return Run(
        name=name,
        sources=tuple(sources.values()),
        models=models,
        exactness=figures.exactness,
        accuracies=figures.accuracies,
        latencies=figures.latencies,
        controls=figures.controls,
        profiles=figures.profiles,
        costs=figures.costs,
        instructions=figures.instructions,
        environments=_merge_environments(figures.environments),
        not_run=figures.not_run,
        diagnosed=figures.diagnosed,
        findings=figures.findings,
        remarks=(*remarks, *repeated, *dict.fromkeys(figures.remarks), *_namesakes(models)),
    )


def _tell_apart(parts: Sequence[Figures], names: Sequence[str]) -> list[Figures]:
    """Say which file a latency is from, where two reports of a run measured the same model in the same setting."""
    counts = Counter(key for part in parts for key in {(setting_of(row), row.model) for row in part.latencies})
    told = []
    for part, name in zip(parts, names, strict=True):
        if any(counts[setting_of(row), row.model] > 1 for row in part.latencies):
            latencies = tuple(replace(row, by=f"{row.by}, {name}") for row in part.latencies)
            controls = tuple(replace(row, by=f"{row.by}, {name}") for row in part.controls)
            told.append(replace(part, latencies=latencies, controls=controls))
        else:
            told.append(part)
    return told


def _models(files: Sequence[MeasuredFile], places: dict[str, Path]) -> list[Model]:
    """Describe every file once, by its digest; of what several reports say, the first with a size counts."""
    chosen: dict[str, MeasuredFile] = {}
    for file in sorted(files, key=lambda file: file.bytes is None):
        chosen.setdefault(file.sha256, file)
    models = []
    for digest in dict.fromkeys(file.sha256 for file in files):
        file = chosen[digest]
        content, unread = read_content(file, places[digest])
        models.append(
            Model(sha256=digest, name=file.name, path=file.path, bytes=file.bytes, content=content, unread=unread)
        )
    return models


def _namesakes(models: Sequence[Model]) -> list[Remark]:
    counts = Counter(model.name for model in models)
    return [
        Remark(
            text=f"{name} is the name of {count} different files here: "
            f"{', '.join(model.sha256[:12] for model in models if model.name == name)}. Their figures are kept apart.",
            grave=False,
        )
        for name, count in counts.items()
        if count > 1
    ]


def _merge_environments(environments: Sequence[Environment]) -> tuple[Environment, ...]:
    """Leave each machine once where several reports describe it alike."""
    merged: dict[tuple[object, ...], Environment] = {}
    for each in environments:
        key = (each.target, each.facts)
        earlier = merged[key].measured if key in merged else ()
        merged[key] = replace(each, measured=tuple(dict.fromkeys((*earlier, *each.measured))))
    return tuple(merged.values())


def _name(runs: Sequence[Run]) -> list[Run]:
    """Give runs of the same name numbers."""
    counts = Counter(run.name for run in runs)
    taken = {name for name, count in counts.items() if count == 1}
    named = []
    for run in runs:
        name, number = run.name, 1
        while counts[run.name] > 1 and (name := f"{run.name} ({number})") in taken:
            number += 1
        taken.add(name)
        named.append(replace(run, name=name))
    return named
