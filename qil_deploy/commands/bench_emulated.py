"""`bench --target` on an emulated processor: executed instructions, since its times mean nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .measured import measure_and_show

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
    from qil_deploy.runtime_tests.instructions import count_instructions
    from qil_deploy.runtime_tests.instructions.table import instructions_table
    from qil_deploy.runtime_tests.targets import find_target

    found = find_target(target)
    measure_and_show(
        lambda tell: count_instructions(models, found, options, progress=tell),
        json,
        tables=lambda report: [instructions_table(report)] if report.models else [],
        interrupted=lambda report: report.interrupted,
    )
