"""The section of latency and memory: bars with intervals, ratios as dots, and tables of both."""

from __future__ import annotations

from collections.abc import Sequence

from qil_deploy.html_elements import Child, element, table

from .figures import Control, Cost, Latency, OperatorTime, Run
from .match import describe_setting, setting_of
from .plots import Mark, bar_chart, dot_chart
from .tables import run_cell, run_head
from .text import NOT_MEASURED, between, count, head, in_run, milliseconds, missing, model_labels, note, percent, words

Measured = tuple[int, Run, Latency]
"""The number of a run, the run, and one of its latencies."""


def latency_section(runs: Sequence[Run]) -> list[Child]:
    """Return latencies of each setting, and what models cost besides."""
    labels = model_labels(runs)
    settings: dict[tuple[object, ...], list[Measured]] = {}
    for index, run in enumerate(runs):
        for row in run.latencies:
            settings.setdefault(setting_of(row), []).append((index, run, row))
    children: list[Child] = []
    order = {model: index for index, model in enumerate(labels)}
    for rows in settings.values():
        children += _setting(sorted(rows, key=lambda measured: order[measured[2].model]), labels, runs)
    if settings:
        children = [note(_EXPLANATION), *_doubts(runs), *children]
    costs = [(run, row) for run in runs for row in run.costs]
    profiles = [(run, row) for run in runs for row in run.profiles]
    if profiles:
        children += [element("h3", "Where the time goes"), _profile_table(profiles, labels, runs)]
    if costs:
        children += [element("h3", "Loading and memory"), _cost_table(costs, labels, runs), note(_COST_EXPLANATION)]
    return children or [missing()]


_EXPLANATION = (
    "Bars are medians, whiskers their 95 % intervals, dotted lines the 95th percentile where it is not far outside. "
    "Spread is the 75th minus the 25th percentile. A model that is there once more is the first, measured twice in "
    "each round: ratios within the width of its interval are equal. Times of an emulator say nothing, and there are "
    "none."
)
_COST_EXPLANATION = "Memory: what a process with the model needs at most, above one that loads no model."


def _doubts(runs: Sequence[Run]) -> list[Child]:
    """Return what makes the times doubtful."""
    several = len(runs) > 1
    texts = [
        f"{run.name}: {remark.text}" if several else remark.text
        for run in runs
        for remark in run.remarks
        if remark.about == "latency"
    ]
    if not texts:
        return []
    title = element("p", element("b", "What makes these times doubtful", class_="state incomplete"))
    return [title, element("ul", *(element("li", text) for text in texts))]


def _setting(rows: Sequence[Measured], labels: dict[str, str], runs: Sequence[Run]) -> list[Child]:
    setting = describe_setting(rows[0][2])
    bars = [
        Mark(
            label=in_run(labels[row.model], run, runs),
            text=_bar_text(row),
            value=row.median,
            low=row.median_low,
            high=row.median_high,
            tail=row.p95,
            series=index,
        )
        for index, run, row in rows
    ]
    dots = [
        _ratio_mark(in_run(labels[row.model], run, runs), row, index)
        for index, run, row in rows
        if row.first != row.model
    ]
    dots += [
        _ratio_mark(in_run(f"{labels[row.model]} once more", run, runs), row, index)
        for index, run in enumerate(runs)
        for row in run.controls
        if setting_of(row) == setting_of(rows[0][2])
    ]
    marks = [mark for mark in dots if mark is not None]
    firsts = ", ".join(dict.fromkeys(labels[row.first] for _, _, row in rows if row.first in labels and row.first))
    return [
        element("h3", setting),
        bar_chart(f"Latency: {setting}", bars, "ms"),
        *([dot_chart(f"Latency as a ratio to {firsts}: {setting}", marks, "")] if marks else []),
        *_latency_table(setting, rows, labels, runs),
    ]


def _ratio_mark(label: str, row: Latency | Control, series: int) -> Mark | None:
    if row.ratio is None:
        return None
    interval = "" if row.ratio_low is None else f" ({between(row.ratio_low, row.ratio_high)})"
    text = f"{milliseconds(row.ratio)}{interval}"
    return Mark(label=label, text=text, value=row.ratio, low=row.ratio_low, high=row.ratio_high, series=series)


def _latency_table(setting: str, rows: Sequence[Measured], labels: dict[str, str], runs: Sequence[Run]) -> list[Child]:
    """Return all figures of a setting; what was measured of no model is named below the table."""
    figures = [_figures(row) for _, _, row in rows]
    known = [name for name in figures[0] if any(each[name] != NOT_MEASURED for each in figures)]
    cells: list[list[Child]] = [
        [labels[row.model], *run_cell(run.name, runs), *(each[name] for name in known)]
        for (_, run, row), each in zip(rows, figures, strict=True)
    ]
    unknown = [name for name in figures[0] if name not in known]
    return [
        table(("model", *run_head(runs), *known), cells, f"Latency, {setting}"),
        *([note(f"Not measured here: {', '.join(unknown)}.")] if unknown else []),
    ]


def _bar_text(row: Latency) -> str:
    interval = "" if row.median_low is None else f" ({between(row.median_low, row.median_high)})"
    return f"{milliseconds(row.median)} ms{interval}, p95 {milliseconds(row.p95)}"


def _figures(row: Latency) -> dict[str, str]:
    """Return every figure of a latency as text, by its heading."""
    first = row.first == row.model
    return {
        "median ms": milliseconds(row.median),
        "interval of the median": between(row.median_low, row.median_high),
        "p95 ms": milliseconds(row.p95),
        "least ms": milliseconds(row.least),
        "spread ms": milliseconds(row.spread),
        "ratio": "1 (the first)" if first else milliseconds(row.ratio),
        "interval of the ratio": "-" if first else between(row.ratio_low, row.ratio_high),
        "1e9 MAC/s": NOT_MEASURED if row.gmacs is None else f"{row.gmacs:.2f}",
        "share of the peak": percent(row.peak_share, 0),
        "runs": f"{row.runs:,}",
    }


def _profile_table(profiles: Sequence[tuple[Run, OperatorTime]], labels: dict[str, str], runs: Sequence[Run]) -> Child:
    heads = ("model", *run_head(runs), "threads", head("operator"), "nodes", "us of one run", "share of the time")
    rows: list[list[Child]] = [
        [
            labels[row.model],
            *run_cell(run.name, runs),
            str(row.threads),
            words(row.operator),
            str(row.nodes),
            f"{row.microseconds:,.1f}",
            percent(row.share, 1),
        ]
        for run, row in profiles
    ]
    return table(heads, rows, "Where the time goes")


def _cost_table(costs: Sequence[tuple[Run, Cost]], labels: dict[str, str], runs: Sequence[Run]) -> Child:
    heads = ("model", *run_head(runs), "load ms", "first run ms", "memory, bytes", "MACs of one image")
    rows: list[list[Child]] = [
        [
            labels[row.model],
            *run_cell(run.name, runs),
            milliseconds(row.load_ms),
            milliseconds(row.first_run_ms),
            count(_memory(row)),
            count(row.macs),
        ]
        for run, row in costs
    ]
    return table(heads, rows, "Loading and memory")


def _memory(row: Cost) -> int | None:
    return None if row.peak_bytes is None or row.runtime_bytes is None else row.peak_bytes - row.runtime_bytes
