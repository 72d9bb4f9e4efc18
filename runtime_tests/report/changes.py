"""The section that has runs side by side: every figure that both have, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence

from qil_deploy.html_elements import Child, element, table

from .deployment import Change, DeploymentReport
from .plots import Mark, dot_chart
from .text import head, milliseconds, missing, note, percent, plural, state, words

_TITLES = {
    "differing": "Exactness",
    "accuracy": "Accuracy",
    "latency": "Latency",
    "instructions": "Instructions",
    "size": "Size",
}


def changes_section(report: DeploymentReport) -> list[Child]:
    """Return every run beside the first; nothing if there is one run."""
    if len(report.runs) < 2:
        return []
    if not report.changes:
        return [missing("No figure is in two runs.")]
    children: list[Child] = [
        note(
            f"Before is {report.runs[0].name}. Models are matched by digest, and where the file is another one by name."
            " Overlapping intervals show no difference."
        )
    ]
    for figure, title in _TITLES.items():
        changes = [change for change in report.changes if change.figure == figure]
        if changes:
            children += _section(title, changes)
    return children


def _section(title: str, every: Sequence[Change]) -> list[Child]:
    """Return a table of what is not the same, and how much is."""
    changes = [change for change in every if _worth_showing(change)]
    same = len(every) - len(changes)
    if not changes:
        return [element("h3", title), element("p", f"The same in {plural(same, 'comparison')}.")]
    heads = ("model", head("run"), "file", head("figure"), "before", "after", "change", head("remark"))
    rows = (
        [
            change.name,
            words(change.run),
            "the same" if change.same_file else "another",
            words(change.setting or "bytes"),
            _value(change, change.before),
            _value(change, change.after),
            _change(change),
            words(change.remark or ""),
        ]
        for change in changes
    )
    dots = [
        Mark(
            label=f"{change.name}, {change.setting}, {change.run}",
            text=f"{change.ratio:.3g}: {_overlap(change)}",
            value=change.ratio,
        )
        for change in changes
        if change.figure == "latency" and change.ratio is not None
    ]
    return [
        element("h3", title),
        *([dot_chart("Latency after, divided by before", dots, "")] if dots else []),
        table(heads, rows, f"{title} of the runs"),
        *([note(f"The same in {plural(same, 'more comparison')}.")] if same else []),
    ]


def _worth_showing(change: Change) -> bool:
    """Return whether two figures are not simply the same and as they should be."""
    wrong = change.figure == "differing" and change.after > 0
    return change.before != change.after or wrong or change.remark is not None


def _value(change: Change, value: float) -> str:
    if change.figure == "accuracy":
        return percent(value)
    return f"{milliseconds(value)} ms" if change.figure == "latency" else f"{value:,.0f}"


def _change(change: Change) -> Child:
    difference = change.after - change.before
    if change.figure == "accuracy":
        return f"{100 * difference:+.2f} points" if difference else "none"
    if change.figure == "differing":
        if change.after:
            return state(f"{difference:+,.0f}" if difference else "none", "differs")
        return state("none" if not difference else f"{difference:+,.0f}", "equal")
    if change.ratio is None or not difference:
        return "none" if not difference else f"{difference:+,.0f}"
    ratio = f"{change.ratio:.3g} times"
    return f"{ratio}, {_overlap(change)}" if change.figure == "latency" else ratio


def _overlap(change: Change) -> str:
    if change.overlap is None:
        return "intervals not measured"
    return "intervals overlap" if change.overlap else "intervals apart"
