"""An `InstructionsReport` as a table."""

from __future__ import annotations

from qil_deploy.runtime_tests.tables import short_names
from qil_deploy.terminal import Table

from .report import InstructionsReport


def instructions_table(report: InstructionsReport) -> Table:
    """Return one row per model."""
    environment = report.environment
    notes = ["emulated by qemu-user, which knows no caches, no pipelines and no memory"]
    if environment is not None:
        versions = f"onnxruntime {environment.onnxruntime}, numpy {environment.numpy}"
        notes.append(f"{versions}, {environment.machine}, 1 thread")
    if report.kernels is not None:
        notes.append(f"kernels: {report.kernels}")
    table = Table(
        f"{report.target}: instructions per inference: a proxy, not a time (batch {report.batch})",
        ("model", "million instructions", "ratio", "spread"),
        notes,
    )
    names = short_names({model.model.path for model in report.models})
    for model in report.models:
        millions = f"{model.instructions / 1e6:.3f}"
        table.row(names[model.model.path], millions, f"{model.ratio:.3f}", f"{model.spread:.2%}")
    return table
