"""Tables of exactness, accuracy and changes: rows grouped and sorted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .chart import Chart, Mark
from .deployment import Change
from .figures import NATIVE, Exactness, NotRun, Run
from .models import model_labels
from .text import NOT_MEASURED, milliseconds, percent, plural

_LEVELS = ("disabled", "basic", "extended", "all")
_CHANGES = {
    "differing": "Exactness",
    "accuracy": "Accuracy",
    "latency": "Latency",
    "instructions": "Instructions",
    "size": "Size",
}


@dataclass(frozen=True, kw_only=True)
class ComparedGroup:
    """Comparisons of one backend on one target, level by level; the level is None for a backend without levels."""

    run: str
    target: str
    backend: str
    compared: str
    by_level: dict[str | None, Exactness]


@dataclass(frozen=True, kw_only=True)
class ComparedModel:
    """The comparisons of one model: on this machine first, then on targets in order of appearance.

    Attributes:
        label: what the model is called.
        levels: those with any comparison.
        groups: rows of the table.
        gaps: names of runs, and what was not run.
    """

    label: str
    levels: list[str]
    groups: list[ComparedGroup]
    gaps: list[tuple[str, NotRun]]


def compared_models(runs: Sequence[Run]) -> list[ComparedModel]:
    """Return the models that were compared, or should have been."""
    return [
        _compared_model(label, own, gaps)
        for model, label in model_labels(runs).items()
        for own in [[(run.name, row) for run in runs for row in run.exactness if row.model == model]]
        for gaps in [[(run.name, gap) for run in runs for gap in run.not_run if gap.model == model]]
        if own or gaps
    ]


def _compared_model(label: str, own: Sequence[tuple[str, Exactness]], gaps: list[tuple[str, NotRun]]) -> ComparedModel:
    found = {row.level for _, row in own if row.level is not None}
    groups: dict[tuple[object, ...], ComparedGroup] = {}
    for run, row in own:
        key = (run, row.target, row.backend, row.what, row.elements, row.images, row.level is None)
        what = f"{plural(row.elements, row.what[:-1])} of {plural(row.images, 'image')}"
        empty = ComparedGroup(run=run, target=row.target, backend=row.backend, compared=what, by_level={})
        groups.setdefault(key, empty).by_level[row.level] = row
    targets = list(dict.fromkeys([NATIVE, *(row.target for _, row in own)]))
    return ComparedModel(
        label=label,
        levels=[*(level for level in _LEVELS if level in found), *sorted(found.difference(_LEVELS))],
        groups=sorted(groups.values(), key=lambda group: targets.index(group.target)),
        gaps=gaps,
    )


@dataclass(frozen=True, kw_only=True)
class AccuracyRow:
    """One model's accuracy in each run, as text, and the backends that have it."""

    label: str
    cells: tuple[str, ...]
    backends: list[str]


def accuracy_rows(runs: Sequence[Run]) -> list[AccuracyRow]:
    """Return top-1 of every backend, runs side by side; backends of one model with the same figures share a row."""
    rows: list[AccuracyRow] = []
    for model, label in model_labels(runs).items():
        figures: dict[str, list[str]] = {}
        for index, run in enumerate(runs):
            for row in run.accuracies:
                if row.model == model:
                    cells = figures.setdefault(row.backend, [NOT_MEASURED] * len(runs))
                    text = f"{percent(row.accuracy)} of {row.images:,}"
                    cells[index] = text if cells[index] in (NOT_MEASURED, text) else f"{cells[index]}; {text}"
        alike: dict[tuple[str, ...], list[str]] = {}
        for backend, cells in figures.items():
            alike.setdefault(tuple(cells), []).append(backend)
        rows += [AccuracyRow(label=label, cells=cells, backends=backends) for cells, backends in alike.items()]
    return rows


@dataclass(frozen=True, kw_only=True)
class ChangedFigure:
    """One kind of figure in several runs: its changes, and the number of unchanged comparisons."""

    title: str
    changes: list[Change]
    same: int
    chart: Chart


def changed_figures(every: Sequence[Change]) -> list[ChangedFigure]:
    """Return the kinds of figures that two runs share."""
    changed = []
    for figure, title in _CHANGES.items():
        own = [change for change in every if change.figure == figure]
        shown = [change for change in own if _worth_showing(change)]
        marks = [
            Mark(
                label=f"{change.name}, {change.setting}, {change.run}",
                text=f"{change.ratio:.3g}: {_overlap(change)}",
                value=change.ratio,
            )
            for change in shown
            if figure == "latency" and change.ratio is not None
        ]
        chart = Chart("Latency after, divided by before", marks, dots=True)
        if own:
            changed.append(ChangedFigure(title=title, changes=shown, same=len(own) - len(shown), chart=chart))
    return changed


def _worth_showing(change: Change) -> bool:
    """Return whether two figures differ or are not as expected."""
    wrong = change.figure == "differing" and change.after > 0
    return change.before != change.after or wrong or change.remark is not None


def figure_of(value: float, change: Change) -> str:
    """Return the value before or after a change as text."""
    if change.figure == "accuracy":
        return percent(value)
    return f"{milliseconds(value)} ms" if change.figure == "latency" else f"{value:,.0f}"


def step_of(change: Change) -> str:
    """Return the change of a figure."""
    difference = change.after - change.before
    if not difference:
        return "none"
    if change.figure == "accuracy":
        return f"{100 * difference:+.2f} points"
    if change.ratio is None or change.figure == "differing":
        return f"{difference:+,.0f}"
    ratio = f"{change.ratio:.3g} times"
    return f"{ratio}, {_overlap(change)}" if change.figure == "latency" else ratio


def _overlap(change: Change) -> str:
    if change.overlap is None:
        return "intervals not measured"
    return "intervals overlap" if change.overlap else "intervals apart"
