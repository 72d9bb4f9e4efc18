"""Write and print reports; a progress bar for measurements while they go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from qil_deploy.interrupts import INTERRUPTED

if TYPE_CHECKING:
    from qil_deploy.reports import Report
    from qil_deploy.runtime_tests import BenchReport
    from qil_deploy.runtime_tests.instructions import InstructionsReport
    from qil_deploy.terminal import Table

Tell = Callable[[str, int, int], None]
Measured = TypeVar("Measured", "BenchReport", "InstructionsReport")


def write_and_show(report: Report, json: Path | None, tables: Iterable[Table], remarks: Iterable[str] = ()) -> None:
    """Write a report where that is asked for, and print its tables and remarks even where it cannot be written."""
    from qil_deploy.reports import write_report
    from qil_deploy.terminal import Console

    try:
        if json is not None:
            write_report(json, report)
    finally:  # show what took minutes even on a full disk
        console = Console()
        for table in tables:
            console.print(table)
        for remark in remarks:
            console.print(remark, soft_wrap=True)


def measure_and_show(
    measure: Callable[[Tell], Measured],
    json: Path | None,
    *,
    tables: Callable[[Measured], Iterable[Table]],
    interrupted: Callable[[Measured], bool],
) -> None:
    """Measure under a progress bar, write the report, print its tables, warnings and failures.

    Exits with 2 if a model failed, with 130 after Ctrl-C.

    Args:
        measure: makes the report; takes a progress callback.
        json: where the report goes.
        tables: of a report, to print.
        interrupted: whether Ctrl-C ended a measurement.
    """
    from qil_deploy.files import ensure_writable
    from qil_deploy.terminal import Console, Progress

    if json is not None:
        ensure_writable(json)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        report = measure(lambda what, done, total: bar.update(task, description=what, completed=done, total=total))
    write_and_show(report, json, tables(report), [f"Note: {warning}" for warning in report.warnings])
    for failure in report.failures:
        Console(stderr=True).print(f"Error: {failure.reason}", soft_wrap=True)
    if report.failures:
        raise typer.Exit(2)
    if interrupted(report):
        raise typer.Exit(INTERRUPTED)
