"""Measure wall time and peak memory of `python -m qil_deploy.export` on checkpoints of a large network.

    python benchmarks/export_cost.py --network resnet34 --out runs/benchmarks

One checkpoint is quantized, and export freezes it first; the other is already frozen. The script writes
`OUT/export_cost/*.safetensors` and `.onnx`, and the report `OUT/export_cost.json`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from networks import (
    CLASS_NAMES,
    DATA,
    PREPROCESSING,
    SHAPE,
    colour_images,
    normalized_batches,
    quantized_network,
    random_network,
)
from qil_deploy.checkpoint import CheckpointInfo, save_checkpoint
from qil_deploy.config import QuantConfig
from qil_deploy.errors import QilDeployError
from qil_deploy.files import ensure_writable
from qil_deploy.integers import freeze
from qil_deploy.runtime_tests import write_report
from qil_deploy.runtime_tests.child_process import Ended, run_apart
from qil_deploy.runtime_tests.environment import Environment, describe_environment
from qil_deploy.terminal import Console
from tables import Rows, console_table, describe

CALIBRATION_IMAGES = 8
GOAL_SECONDS = 15.0
GOAL_BYTES = 2 * 2**30


@dataclass(frozen=True, kw_only=True)
class ExportCost:
    """Cost of exporting one checkpoint: `command` is the command that was run, `kind` the kind of checkpoint."""

    kind: str
    command: str
    cost: Ended


@dataclass(frozen=True, kw_only=True)
class ExportCostReport:
    """Results for one network; `network` is its name in `training.models.MODELS`."""

    SCHEMA: ClassVar[str] = "qil_deploy.benchmarks.export_cost/1"

    schema: str
    network: str
    exports: tuple[ExportCost, ...]
    environment: Environment


def main(
    network: Annotated[str, typer.Option(help="Name in training.models.MODELS.")] = "resnet34",
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, models and the report.")] = Path("runs/benchmarks"),
    bits: Annotated[int, typer.Option(help="Bit width of weights and activations.")] = 4,
) -> None:
    """Measure time and memory of exporting a network."""
    console = Console()
    report_path = out / "export_cost.json"
    ensure_writable(report_path)
    exports = []
    for kind, checkpoint in write_checkpoints(network, bits, out / "export_cost").items():
        model = checkpoint.with_suffix(".onnx")
        command = [sys.executable, "-m", "qil_deploy.export", str(checkpoint), "-o", str(model), "--no-freezing-report"]
        console.print(f"Exporting {checkpoint} ...")
        cost = run_apart(command, show_errors=True)
        if cost.exit_code != 0:
            raise QilDeployError(f"the export of {checkpoint} ended with code {cost.exit_code}; see its message above.")
        exports.append(ExportCost(kind=kind, command=" ".join(["python", *command[1:]]), cost=cost))
    report = ExportCostReport(
        schema=ExportCostReport.SCHEMA,
        network=network,
        exports=tuple(exports),
        environment=describe_environment(),
    )
    write_report(report_path, report)
    console.print(console_table(f"export of {network}: {describe(report.environment)}", cost_rows(report)))


def write_checkpoints(network: str, bits: int, folder: Path) -> dict[str, Path]:
    """Write a quantized and a frozen checkpoint of a network with random weights; return their paths by kind."""
    batches = normalized_batches(colour_images(CALIBRATION_IMAGES))
    config = QuantConfig(weight_bits=bits, activation_bits=bits)
    info = CheckpointInfo(
        kind="quantized",
        model_name=network,
        model_arguments={"in_channels": SHAPE[0], "num_classes": len(CLASS_NAMES)},
        config=config,
        preprocessing=PREPROCESSING,
        data=DATA,
        class_names=CLASS_NAMES,
        metrics={},
    )
    quantized = quantized_network(random_network(network, batches, seed=0), config, batches)
    paths = {kind: folder / f"{network}_{kind}.safetensors" for kind in ("quantized", "frozen")}
    save_checkpoint(paths["quantized"], info, quantized)
    save_checkpoint(paths["frozen"], info.model_copy(update={"kind": "frozen"}), freeze(quantized))
    return paths


def cost_rows(report: ExportCostReport) -> Rows:
    """Return one row per checkpoint: the cost of its export, and whether that is within the goals."""
    cells = []
    for export in report.exports:
        met = export.cost.seconds <= GOAL_SECONDS and export.cost.peak_bytes <= GOAL_BYTES
        cells.append(
            [
                f"{report.network}, {export.kind}",
                f"{export.cost.seconds:.1f} s",
                f"{export.cost.peak_bytes / 2**30:.2f} GiB",
                "met" if met else "MISSED",
            ]
        )
    goal = f"at most {GOAL_SECONDS:g} s and {GOAL_BYTES / 2**30:g} GiB"
    return Rows(headings=("checkpoint", "wall time", "peak memory", goal), cells=cells)


if __name__ == "__main__":
    typer.run(main)
