"""The same table for the terminal and for a Markdown page."""

from __future__ import annotations

from dataclasses import dataclass

from qil_deploy.runtime_tests.environment import Environment
from qil_deploy.terminal import Table


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Headings and cells of a table; the first column is text, the others figures."""

    headings: tuple[str, ...]
    cells: list[list[str]]


def console_table(title: str, rows: Rows) -> Table:
    """Return a table for `Console.print`."""
    table = Table(title, rows.headings)
    for cells in rows.cells:
        table.row(*cells)
    return table


def markdown_table(rows: Rows) -> str:
    """Return a Markdown table, figures aligned to the right, without a newline at its end."""
    rules = ["---", *("---:" for _ in rows.headings[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [rows.headings, rules, *rows.cells])


def describe(environment: Environment) -> str:
    """Say in a line where a benchmark ran."""
    return f"{environment.cpu}, {environment.cpus} CPUs, onnxruntime {environment.onnxruntime}"
