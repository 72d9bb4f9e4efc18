"""Figures grouped by setting, model beside model: latencies, and instructions on emulated processors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from .chart import Chart, Mark
from .compare_runs import counted_on, describe_count, describe_setting, setting_of
from .figures import Control, InstructionCount, Latency, Run
from .models import model_labels
from .text import NOT_MEASURED, between, milliseconds, percent

_MILLION = 1e6
Row = TypeVar("Row", Latency, InstructionCount)


@dataclass(frozen=True, kw_only=True)
class SettingRow:
    """The figures of one model in one run, as text."""

    model: str
    run: str
    cells: list[str]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Figures of one setting.

    Attributes:
        name: of the setting, in words.
        charts: of it.
        heads: of the columns of its table, after model and run.
        rows: of its table.
        unknown: headings of what was not measured for any model.
    """

    name: str
    charts: list[Chart]
    heads: list[str]
    rows: list[SettingRow]
    unknown: list[str]


def latency_settings(runs: Sequence[Run]) -> list[Setting]:
    """Return the latencies of each setting."""
    labels = model_labels(runs)
    order = list(labels)
    found = _by_setting(runs, lambda run: run.latencies, setting_of)
    return [_latency_setting(sorted(rows, key=lambda each: order.index(each[1].model)), labels, runs) for rows in found]


def instruction_settings(runs: Sequence[Run]) -> list[Setting]:
    """Return the counts on each emulated processor."""
    labels = model_labels(runs)
    settings = []
    for rows in _by_setting(runs, lambda run: run.instructions, counted_on):
        name = describe_count(rows[0][1])
        bars = [
            Mark(
                label=_in_run(labels[row.model], index, runs),
                text=f"{row.instructions / _MILLION:,.3f} million",
                value=row.instructions / _MILLION,
                series=index,
            )
            for index, row in rows
        ]
        figures = [
            {
                "instructions": f"{row.instructions:,}",
                "ratio": f"{row.ratio:.3f} of {labels[row.first]}" if row.first != row.model else "1 (the first)",
                "spread": percent(row.spread),
            }
            for _, row in rows
        ]
        settings.append(_setting(name, [Chart(f"Instructions: {name}", bars, "million")], rows, figures, runs))
    return settings


def _by_setting(
    runs: Sequence[Run], rows_of: Callable[[Run], Iterable[Row]], key: Callable[[Row], tuple[object, ...]]
) -> list[list[tuple[int, Row]]]:
    """Group rows by key, each with the number of its run."""
    settings: dict[tuple[object, ...], list[tuple[int, Row]]] = {}
    for index, run in enumerate(runs):
        for row in rows_of(run):
            settings.setdefault(key(row), []).append((index, row))
    return list(settings.values())


def _setting(
    name: str,
    charts: list[Chart],
    rows: Sequence[tuple[int, Row]],
    figures: Sequence[dict[str, str]],
    runs: Sequence[Run],
) -> Setting:
    """Build a setting from the figures of each row, by heading; headings without figures get no column."""
    heads = [head for head in figures[0] if any(each[head] != NOT_MEASURED for each in figures)]
    return Setting(
        name=name,
        charts=charts,
        heads=heads,
        rows=[
            SettingRow(model=row.model, run=runs[index].name, cells=[each[head] for head in heads])
            for (index, row), each in zip(rows, figures, strict=True)
        ],
        unknown=[head for head in figures[0] if head not in heads],
    )


def _latency_setting(rows: Sequence[tuple[int, Latency]], labels: dict[str, str], runs: Sequence[Run]) -> Setting:
    name = describe_setting(rows[0][1])
    bars = [
        Mark(
            label=_in_run(labels[row.model], index, runs),
            text=_bar_text(row),
            value=row.median,
            low=row.median_low,
            high=row.median_high,
            tail=row.p95,
            series=index,
        )
        for index, row in rows
    ]
    controls = [
        (index, row)
        for index, run in enumerate(runs)
        for row in run.controls
        if setting_of(row) == setting_of(rows[0][1])
    ]
    dots = [
        *(
            _ratio_mark(_in_run(labels[row.model], index, runs), row, index)
            for index, row in rows
            if not _is_first(row)
        ),
        *(_ratio_mark(_in_run(f"{labels[row.model]} once more", index, runs), row, index) for index, row in controls),
    ]
    firsts = ", ".join(dict.fromkeys(labels[row.first] for _, row in rows if row.first in labels and row.first))
    ratios = Chart(f"Latency as a ratio to {firsts}: {name}", [mark for mark in dots if mark is not None], dots=True)
    charts = [Chart(f"Latency: {name}", bars, "ms"), *([ratios] if ratios.marks else [])]
    return _setting(name, charts, rows, [_latency_figures(row) for _, row in rows], runs)


def _is_first(row: Latency) -> bool:
    """Return whether a latency belongs to the model that ratios refer to."""
    return row.first == row.model


def _ratio_mark(label: str, row: Latency | Control, series: int) -> Mark | None:
    if row.ratio is None:
        return None
    interval = "" if row.ratio_low is None else f" ({between(row.ratio_low, row.ratio_high)})"
    text = f"{milliseconds(row.ratio)}{interval}"
    return Mark(label=label, text=text, value=row.ratio, low=row.ratio_low, high=row.ratio_high, series=series)


def _bar_text(row: Latency) -> str:
    interval = "" if row.median_low is None else f" ({between(row.median_low, row.median_high)})"
    return f"{milliseconds(row.median)} ms{interval}, p95 {milliseconds(row.p95)}"


def _latency_figures(row: Latency) -> dict[str, str]:
    """Return every figure of a latency as text, by its heading."""
    return {
        "median ms": milliseconds(row.median),
        "interval of the median": between(row.median_low, row.median_high),
        "p95 ms": milliseconds(row.p95),
        "least ms": milliseconds(row.least),
        "spread ms": milliseconds(row.spread),
        "ratio": "1 (the first)" if _is_first(row) else milliseconds(row.ratio),
        "interval of the ratio": "-" if _is_first(row) else between(row.ratio_low, row.ratio_high),
        "1e9 MAC/s": NOT_MEASURED if row.gmacs is None else f"{row.gmacs:.2f}",
        "share of the peak": percent(row.peak_share, 0),
        "runs": f"{row.runs:,}",
    }


def _in_run(text: str, index: int, runs: Sequence[Run]) -> str:
    """Append the name of the run to a text if there are several runs."""
    return f"{text}, {runs[index].name}" if len(runs) > 1 else text
