"""Read runs from JSON files, or folders of them, and combine their figures."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from qil_deploy.errors import DataError, OtherSchemaError

from .compare_runs import compare_runs
from .deployment import DeploymentReport
from .figures import FILES, Remark, Run
from .join_reports import join_reports
from .read_report import check_figures, read_any_report
from .verdict import judge

# Other JSON that this project writes, and by which command.
_OTHER_COMMANDS: Final = {
    "qil_deploy.inspect/1": "inspect",
    "qil_deploy.results/1": "demo",
    "qil_deploy.run/1": "train",
    "qil_deploy.sensitivity/1": "sensitivity",
}


@dataclass(frozen=True, kw_only=True)
class _Found:
    """The runs found at a path, and remarks about files that contain none."""

    runs: list[Run]
    remarks: list[Remark]


def collect(paths: Sequence[Path], *, now: datetime | None = None) -> DeploymentReport:
    """Read runs and judge them.

    Args:
        paths: each a JSON file, a folder of them, or a folder of such folders; an earlier `report`'s output counts as
            all its runs.
        now: the time; by default the system's.

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
        report = read_any_report(path)
    except OtherSchemaError as error:
        return _Found(runs=[], remarks=[_left_out(path, error)])
    if isinstance(report, DeploymentReport):
        return _Found(runs=_earlier(path, report), remarks=[])
    return _Found(runs=[join_reports(path.stem, [(path, report)], ())], remarks=[])


def _left_out(path: Path, error: OtherSchemaError) -> Remark:
    """Explain why a file from another command is left out; raise `error` if no command wrote it."""
    command = _OTHER_COMMANDS.get(error.schema) if isinstance(error.schema, str) else None
    if command is None:
        raise error
    text = f"Left out: {path} is what `{command}` wrote; it has no figures that this page shows."
    return Remark(text=text, grave=False, about=FILES)


def _earlier(path: Path, report: DeploymentReport) -> list[Run]:
    """Return the runs of an earlier report, checked like any other."""
    for run in report.runs:
        check_figures(path, run)
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
    """Return the run in a folder of reports, or the runs in its subfolders if it contains no JSON itself."""
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
    """Return each folder as a run of its own; a folder without reports becomes a remark."""
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
    """Return the run in the files of a folder, or the runs of earlier reports if there is nothing else.

    Returns:
        Runs, with remarks about files that are left out; and these remarks alone if there is no run.
    """
    reports, remarks = [], []
    for path in paths:
        try:
            reports.append((path, read_any_report(path)))
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
    return [join_reports(folder.resolve().name or str(folder), single, remarks)], []


def _unread(path: Path, error: DataError) -> Remark:
    """Return the remark about a file that is left out; a grave one if it may contain a difference."""
    if isinstance(error, OtherSchemaError):
        with contextlib.suppress(DataError):
            return _left_out(path, error)
    return Remark(text=f"Left out: {error}", grave=True, about=FILES)


def _name(runs: Sequence[Run]) -> list[Run]:
    """Number runs of the same name."""
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
