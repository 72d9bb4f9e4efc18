"""An `InstructionsReport` as a table."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from qil_deploy.runtime_tests.tables import new_table, short_names

from .report import InstructionsReport


def instructions_table(report: InstructionsReport) -> Table:
    """Return one row per model."""
    environment = report.environment
    caption = "emulated by qemu-user, which knows no caches, no pipelines and no memory"
    if environment is not None:
        caption += (
            f"\nonnxruntime {environment.onnxruntime}, numpy {environment.numpy}, {environment.machine}, 1 thread"
        )
    table = new_table(
        title=f"{escape(report.target)}: instructions per inference: a proxy, not a time (batch {report.batch})",
        caption=escape(caption),
    )
    table.add_column("model", overflow="fold")
    for column in ("million\ninstructions", "ratio", "spread"):
        table.add_column(column, justify="right")
    names = short_names({model.model.path for model in report.models})
    for model in report.models:
        millions = f"{model.instructions / 1e6:.3f}"
        table.add_row(escape(names[model.model.path]), millions, f"{model.ratio:.3f}", f"{model.spread:.2%}")
    return table
