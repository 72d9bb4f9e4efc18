"""`doctor`: find what makes a quantized ONNX model slow or inexact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .kernel_option import KernelOption, named_library


def doctor_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="Any ONNX file, from any exporter.")],
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write it as JSON, too.")] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long ONNX Runtime may take to load, optimize and run it.")
    ] = 120.0,
    memory: Annotated[
        int | None,
        typer.Option(metavar="MIB", help="How much memory it may take; default: 1,024 and eight times the model."),
    ] = None,
    kernels: KernelOption = None,
) -> None:
    """Report what makes a quantized model slow, inexact or wrong in ONNX Runtime on CPUs, and what to do.

    ONNX Runtime loads and runs the model once, in a separate process. Exit code 1 means that something does not run, is
    wrong, slow or inexact, or could not be examined; with only notes it is 0.

    With --kernels it runs the model again with the library, and reports the kernels and whether results are equal.
    """
    from qil_deploy.files import ensure_writable
    from qil_deploy.runtime_tests import write_report
    from qil_deploy.runtime_tests.doctor import Limits, diagnose
    from qil_deploy.runtime_tests.doctor.text import diagnosis_lines
    from qil_deploy.terminal import Console

    library = named_library(kernels)
    limits = Limits(seconds=timeout, memory=None if memory is None else memory * 2**20)
    if json_file is not None:
        ensure_writable(json_file)
    diagnosis = diagnose(model, limits, library)
    if json_file is not None:
        write_report(json_file, diagnosis)
    console = Console()
    for line in diagnosis_lines(diagnosis):
        console.print(line)
    if not diagnosis.healthy:
        raise typer.Exit(1)
