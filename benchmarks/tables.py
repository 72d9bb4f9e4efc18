"""Tables that can be printed on the terminal or written to a Markdown page."""

from __future__ import annotations

from dataclasses import dataclass

from qil_deploy.runtime_tests.environment import Environment
from qil_deploy.terminal import Table


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Headings and cells of a table; the first column is text, the others are figures."""

    headings: tuple[str, ...]
    cells: list[list[str]]


def console_table(title: str, rows: Rows) -> Table:
    """Return a table for `Console.print`."""
    table = Table(title, rows.headings)
    for cells in rows.cells:
        table.row(*cells)
    return table


def markdown_table(rows: Rows) -> str:
    """Return a Markdown table with right-aligned figures, without a trailing newline."""
    rules = ["---", *("---:" for _ in rows.headings[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [rows.headings, rules, *rows.cells])


def describe(environment: Environment) -> str:
    """Return a line on the machine of a benchmark."""
    return f"{environment.cpu}, {environment.cpus} CPUs, onnxruntime {environment.onnxruntime}"
