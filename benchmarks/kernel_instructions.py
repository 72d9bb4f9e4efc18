"""Count the instructions of one inference with the kernels on emulated processors, compared with ONNX Runtime's int8.

    python benchmarks/kernel_instructions.py build/arm64/libqil_deploy_kernels.so --page docs/kernels.md
    python benchmarks/kernel_instructions.py build/x86/libqil_deploy_kernels.so --on haswell --page docs/kernels.md

Instruction counts are a proxy for time. The network runs at 224x224, with random weights distributed like trained ones
(`networks`), at 2 to 4 bits. CONTRIBUTING.md explains how to build the library for 64-bit ARM; `target setup arm64` (or
`haswell`) and `target setup instructions` set up the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from kernel_models import INT8, write_models
from qil_deploy.files import ensure_writable, write_text
from qil_deploy.runtime_tests import write_report
from qil_deploy.runtime_tests.instructions import CountOptions, InstructionsReport, count_instructions
from qil_deploy.runtime_tests.targets import find_target
from qil_deploy.terminal import Console
from tables import Rows, console_table, markdown_table
from write_tables import with_tables

TARGETS = {"arm64": ("arm64:cortex-a53", "arm64:cortex-a72"), "haswell": ("haswell",)}
GOALS = {  # at most this share of int8's instructions
    "arm64": {"w2a2": 0.5, "w3a3": 0.6, "w4a4": 0.8},
    "haswell": {"w2a2": 0.5, "w4a4": 0.75},
}
TIMEOUT = 1800.0


def main(
    library: Annotated[Path, typer.Argument(help="The library of kernels built for these processors.")],
    network: Annotated[str, typer.Option(help="Name in training.models.MODELS.")] = "resnet18",
    on: Annotated[Literal["arm64", "haswell"], typer.Option(help="Processors to emulate.")] = "arm64",
    out: Annotated[Path, typer.Option(help="Folder for models and reports.")] = Path("runs/benchmarks/instructions"),
    page: Annotated[Path | None, typer.Option(help="A page into which the table is also written.")] = None,
) -> None:
    """Write missing models, count instructions, and write the table."""
    console = Console()
    goals = GOALS[on]
    folder = out / on / network
    paths = [folder / f"{name}.onnx" for name in (INT8, *goals)]
    if not all(path.is_file() for path in paths):
        console.print(f"Writing models to {folder} ...")
        write_models(network, folder, [int(name[1]) for name in goals])
    reports = {}
    for target in TARGETS[on]:
        processor = target.removeprefix("arm64:")
        report_path = folder / f"{processor}.json"
        ensure_writable(report_path)
        options = CountOptions(repeats=1, timeout=TIMEOUT, kernels=library)
        console.print(f"Counting on {processor} ...")
        reports[processor] = count_instructions(paths, find_target(target), options)
        write_report(report_path, reports[processor])
    rows = instruction_rows(reports, goals)
    if page is not None:
        table = f"instructions_{network}" if on == "arm64" else f"instructions_{network}_{on}"
        write_text(page, with_tables(page.read_text(), {table: f"\n{markdown_table(rows)}\n\n"}))
    console.print(console_table(f"{network}: million instructions per inference", rows))


def instruction_rows(reports: dict[str, InstructionsReport], goals: dict[str, float]) -> Rows:
    """Return one row per model: instructions on each processor, in millions, their ratio to int8's, and the goal."""
    cells = []
    for name in (INT8, *goals):
        row = [name]
        for report in reports.values():
            found = [model for model in report.models if Path(model.model.path).stem == name]
            row += [f"{found[0].instructions / 1e6:.1f}", f"{found[0].ratio:.3f}"] if found else ["failed", ""]
        cells.append([*row, f"{goals[name]:g}" if name in goals else ""])
    headings = ["model"]
    for processor in reports:
        headings += [processor, "ratio"]
    return Rows(headings=(*headings, "goal"), cells=cells)


if __name__ == "__main__":
    typer.run(main)
