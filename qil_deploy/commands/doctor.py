"""`doctor`: what holds a quantized ONNX model back?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def doctor_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="Any ONNX file, whoever wrote it.")],
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write it as JSON, too.")] = None,
) -> None:
    """Say what makes a quantized model slow or inexact in ONNX Runtime on CPUs, and what to do.

    Exit code 1 means that something does not run, is slow or is inexact; notes alone end with 0.
    """
    from qil_deploy.files import ensure_writable
    from qil_deploy.runtime_tests import write_report
    from qil_deploy.runtime_tests.doctor import diagnose
    from qil_deploy.runtime_tests.doctor.text import diagnosis_lines
    from qil_deploy.terminal.console import Console

    if json_file is not None:
        ensure_writable(json_file)
    diagnosis = diagnose(model)
    if json_file is not None:
        write_report(json_file, diagnosis)
    console = Console()
    for line in diagnosis_lines(diagnosis):
        console.print(line)
    if not diagnosis.healthy:
        raise typer.Exit(1)
