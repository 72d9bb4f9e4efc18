"""The same table for the terminal and for a Markdown page."""

from __future__ import annotations

from dataclasses import dataclass

from rich import box
from rich.markup import escape
from rich.table import Table

from qil_deploy.runtime_tests.environment import Environment


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Headings, which may have two lines, and cells of a table; the first column is text, the others figures."""

    headings: tuple[str, ...]
    cells: list[list[str]]


def console_table(title: str, rows: Rows) -> Table:
    """Return a table for `rich.console.Console.print`."""
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for index, heading in enumerate(rows.headings):
        table.add_column(heading, justify="left" if index == 0 else "right", overflow="fold")
    for cells in rows.cells:
        table.add_row(*map(escape, cells))
    return table


def markdown_table(rows: Rows) -> str:
    """Return a Markdown table, figures aligned to the right, without a newline at its end."""
    headings = [heading.replace("\n", " ") for heading in rows.headings]
    rules = ["---", *("---:" for _ in rows.headings[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [headings, rules, *rows.cells])


def describe(environment: Environment) -> str:
    """Say in a line where a benchmark ran."""
    return f"{environment.cpu}, {environment.cpus} CPUs, onnxruntime {environment.onnxruntime}"
