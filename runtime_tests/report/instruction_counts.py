"""The section of instructions counted on emulated processors: bars and a table for each of them."""

from __future__ import annotations

from collections.abc import Sequence

from qil_deploy.html_elements import Child, element, table

from .figures import InstructionCount, Run
from .match import counted_on, describe_count
from .plots import Mark, bar_chart
from .tables import run_cell, run_head
from .text import in_run, model_labels, note, percent

_EXPLANATION = (
    "Instructions of one inference on one thread, counted by an emulator: a proxy for the work that the kernels of a "
    "processor make of a model, and not a time. Caches, memory and what one instruction costs are not in them."
)
_MILLION = 1e6


def instructions_section(runs: Sequence[Run]) -> list[Child]:
    """Return what was counted on each target; nothing where nothing was."""
    labels = model_labels(runs)
    settings: dict[tuple[object, ...], list[tuple[int, Run, InstructionCount]]] = {}
    for index, run in enumerate(runs):
        for row in run.instructions:
            settings.setdefault(counted_on(row), []).append((index, run, row))
    children: list[Child] = []
    for rows in settings.values():
        children += _setting(rows, labels, runs)
    return [note(_EXPLANATION), *children] if children else []


def _setting(
    rows: Sequence[tuple[int, Run, InstructionCount]], labels: dict[str, str], runs: Sequence[Run]
) -> list[Child]:
    setting = describe_count(rows[0][2])
    bars = [
        Mark(
            label=in_run(labels[row.model], run, runs),
            text=f"{row.instructions / _MILLION:,.3f} million",
            value=row.instructions / _MILLION,
            series=index,
        )
        for index, run, row in rows
    ]
    cells: list[list[Child]] = [
        [
            labels[row.model],
            *run_cell(run.name, runs),
            f"{row.instructions:,}",
            f"{row.ratio:.3f} of {labels[row.first]}" if row.first != row.model else "1 (the first)",
            percent(row.spread),
        ]
        for _, run, row in rows
    ]
    heads = ("model", *run_head(runs), "instructions", "ratio", "spread")
    return [
        element("h3", setting),
        bar_chart(f"Instructions: {setting}", bars, "million"),
        table(heads, cells, f"Instructions, {setting}"),
    ]
