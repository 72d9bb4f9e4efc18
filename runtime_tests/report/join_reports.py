"""Join the reports of one run: their figures of the same model, the same machine, the same setting."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .compare_runs import setting_of
from .figures import FILES, Environment, Model, Remark, Run, SourceFile, merge
from .model_content import read_content
from .read_report import SingleReport, figures_of


def join_reports(name: str, reports: Sequence[tuple[Path, SingleReport]], remarks: Sequence[Remark]) -> Run:
    """Join the reports of one run.

    Args:
        name: of the run.
        reports: with the files that they are from; files of equal content count once.
        remarks: about files that are left out.
    """
    sources: dict[str, SourceFile] = {}
    parts: list[Run] = []
    repeated: list[Remark] = []
    places: dict[str, Path] = {}
    for path, report in reports:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest in sources:
            text = f"Left out: {path} has the same content as {sources[digest].path}."
            repeated.append(Remark(text=text, grave=False, about=FILES))
            continue
        sources[digest] = SourceFile(path=str(path), schema=report.schema, sha256=digest)
        parts.append(figures_of(path, report))
        for model in parts[-1].models:
            places.setdefault(model.sha256, path.parent)
    run = merge(name, *_tell_apart(parts, [Path(source.path).stem for source in sources.values()]))
    models = tuple(_models(run.models, places))
    return replace(
        run,
        sources=tuple(sources.values()),
        models=models,
        environments=_merge_environments(run.environments),
        remarks=(*remarks, *repeated, *dict.fromkeys(run.remarks), *_namesakes(models)),
    )


def _tell_apart(parts: Sequence[Run], names: Sequence[str]) -> list[Run]:
    """Add the file of a latency if two reports of a run measured the same model in the same setting."""
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


def _models(models: Sequence[Model], places: dict[str, Path]) -> list[Model]:
    """Describe every file once, by its digest; the first report with a size counts."""
    chosen: dict[str, Model] = {}
    for model in sorted(models, key=lambda model: model.bytes is None):
        chosen.setdefault(model.sha256, model)
    described = []
    for digest in dict.fromkeys(model.sha256 for model in models):
        content, unread = read_content(chosen[digest], places[digest])
        described.append(replace(chosen[digest], content=content, unread=unread))
    return described


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
    """Keep each machine once if several reports describe it alike."""
    merged: dict[tuple[object, ...], Environment] = {}
    for each in environments:
        key = (each.target, each.facts)
        earlier = merged[key].measured if key in merged else ()
        merged[key] = replace(each, measured=tuple(dict.fromkeys((*earlier, *each.measured))))
    return tuple(merged.values())
