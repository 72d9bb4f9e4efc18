"""Read runs: files of JSON, or folders of them, and put their figures together."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from qil_deploy.errors import DataError
from qil_deploy.reports import read_report_of
from qil_deploy.runtime_tests.bench import BenchReport
from qil_deploy.runtime_tests.doctor.diagnosis import Diagnosis, Diagnosis1
from qil_deploy.runtime_tests.instructions import InstructionsReport
from qil_deploy.runtime_tests.targets.report import DeviceReport, TargetsReport
from qil_deploy.runtime_tests.verify import VerifyReport

from .content import read_content
from .deployment import DeploymentReport
from .extract import of_device, of_diagnosis, of_targets, of_verify
from .extract_times import of_bench, of_instructions
from .figures import Environment, Model, Remark, Run, SourceFile
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
    | Diagnosis1
    | DeploymentReport
)

_CLASSES: Final[tuple[type[Readable], ...]] = (
    VerifyReport,
    TargetsReport,
    DeviceReport,
    BenchReport,
    InstructionsReport,
    Diagnosis,
    Diagnosis1,
    DeploymentReport,
)
_LARGEST: Final = 2**28  # bytes; reports of large networks have some 2**20


def collect(paths: Sequence[Path], *, now: datetime | None = None) -> DeploymentReport:
    """Read runs and say what they come to.

    Args:
        paths: each a JSON file or a folder of them; what an earlier `report` wrote stands for all its runs.
        now: what time it is; by default it is asked for.

    Raises:
        DataError: there is no such file or folder, a file that was named is no report, is damaged or of a schema that
            is not known, or a folder has no report that can be read. A file in a folder that cannot be read is a remark
            in the report.
    """
    if not paths:
        raise DataError("there is nothing to report; name a JSON file or a folder of them.")
    runs = _name([run for path in paths for run in (_read_folder(path) if path.is_dir() else _read_file(path))])
    changes, remarks = compare_runs(runs)
    return DeploymentReport(
        schema=DeploymentReport.SCHEMA,
        written=(now or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC"),
        verdict=judge(runs),
        runs=tuple(runs),
        changes=changes,
        remarks=remarks,
    )


def _read_file(path: Path) -> list[Run]:
    report = _read(path)
    return _earlier(path, report) if isinstance(report, DeploymentReport) else [_run(path.stem, [(path, report)], ())]


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


def _read_folder(folder: Path) -> list[Run]:
    """Return the run that a folder of reports is, or the runs of earlier reports where it holds nothing else."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror or error}.") from error
    reports, remarks = [], []
    for path in paths:
        try:
            reports.append((path, _read(path)))
        except DataError as error:
            remarks.append(Remark(text=f"Left out: {error}", grave=True))
    single = [(path, report) for path, report in reports if not isinstance(report, DeploymentReport)]
    earlier = [(path, report) for path, report in reports if isinstance(report, DeploymentReport)]
    if not reports:
        reasons = " ".join(remark.text for remark in remarks) or "It has no file that ends in .json."
        raise DataError(f"{folder} has no report that could be read. {reasons}")
    if not single:
        runs = [run for path, report in earlier for run in _earlier(path, report)]
        return [replace(runs[0], remarks=(*runs[0].remarks, *remarks)), *runs[1:]] if runs else []
    for path, _ in earlier:
        text = f"Left out: {path} is an earlier outcome of this command; name the file itself to have it beside others."
        remarks.append(Remark(text=text, grave=False))
    return [_run(folder.resolve().name or str(folder), single, tuple(remarks))]


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
    elif isinstance(report, Diagnosis | Diagnosis1):
        figures = of_diagnosis(report)
    else:
        raise TypeError(f"{type(report).__name__} has no figures of its own")
    _check(path, figures)
    return figures


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
            repeated.append(Remark(text=text, grave=False))
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
