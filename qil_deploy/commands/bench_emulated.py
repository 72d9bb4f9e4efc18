"""`bench --target` on an emulated processor: executed instructions, since its times mean nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .interrupts import INTERRUPTED

if TYPE_CHECKING:
    from qil_deploy.runtime_tests.instructions import CountOptions


def bench_emulated(models: Sequence[Path], target: str, options: CountOptions, json: Path | None) -> None:
    """Count the instructions of one inference of each model, print the table, write the report.

    Exits with 2 if a model could not be counted, or not to the end, with 130 after Ctrl-C.

    Args:
        models: ONNX files.
        target: name of an emulated target.
        options: how to count.
        json: where the report goes.
    """
    from rich.console import Console
    from rich.progress import Progress

    from qil_deploy.files import ensure_writable
    from qil_deploy.reports import write_report
    from qil_deploy.runtime_tests.instructions import count_instructions
    from qil_deploy.runtime_tests.instructions.table import instructions_table
    from qil_deploy.runtime_tests.targets import find_target

    found = find_target(target)
    if json is not None:
        ensure_writable(json)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        report = count_instructions(
            models,
            found,
            options,
            progress=lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
    try:
        if json is not None:
            write_report(json, report)
    finally:  # what took minutes is shown even where it cannot be written
        console = Console(markup=False)
        if report.models:
            console.print(instructions_table(report))
        for warning in report.warnings:
            console.print(f"Note: {warning}", soft_wrap=True)
    for failure in report.failures:
        Console(stderr=True, markup=False).print(f"Error: {failure.reason}", soft_wrap=True)
    if report.failures:
        raise typer.Exit(2)
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)
