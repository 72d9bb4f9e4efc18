"""Measure the effect of fewer bits in single layers of the zoo's networks; write the tables of docs/mixed-precision.md.

    python benchmarks/sensitivity_table.py --out runs/sensitivity --page docs/mixed-precision.md

The script runs `qil_deploy sensitivity` on the float network and on the 4-bit one, with a budget of 3.2 bits per
weight, unless `--out` already contains the report.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from qil_deploy.files import write_text
from qil_deploy.terminal import Console
from tables import Rows, console_table, markdown_table
from write_tables import with_tables

ZOO = Path(__file__).parents[1] / "zoo" / "fashion_mnist"
WIDTHS = {"float": (4, 3, 2), "w4a4": (3, 2)}  # bit widths to which layers of each network are lowered
BUDGET_BITS = 3.2  # per weight


def main(
    out: Annotated[Path, typer.Option(help="Folder for the reports.")] = Path("runs/sensitivity"),
    page: Annotated[Path | None, typer.Option(help="A page into which the tables are also written.")] = None,
) -> None:
    """Measure missing reports, and write the tables."""
    reports = {name: _report(name, out) for name in WIDTHS}
    layers, together = layer_rows(reports), together_rows(reports)
    if page is not None:
        tables = {"sensitivity_layers": layers, "sensitivity_together": together}
        found = {name: f"\n{markdown_table(rows)}\n\n" for name, rows in tables.items()}
        write_text(page, with_tables(page.read_text(), found))
    console = Console()
    console.print(console_table("Divergence by each layer lowered by itself", layers))
    console.print(console_table("All layers together", together))


def _report(name: str, out: Path) -> dict[str, Any]:
    path = out / f"{name}.json"
    if not path.is_file():
        widths = ",".join(str(width) for width in WIDTHS[name])
        command = ["sensitivity", str(ZOO / f"{name}.safetensors"), "--bits", widths]
        command += ["--budget-bits", str(BUDGET_BITS), "--json", str(path)]
        subprocess.run([sys.executable, "-m", "qil_deploy", *command], check=True)  # noqa: S603 - our own command
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def layer_rows(reports: dict[str, dict[str, Any]]) -> Rows:
    """Return one row per lowered layer, the most sensitive in the float network first: KL by width, proposed bits."""
    headings: tuple[str, ...] = ("layer", "weights")
    found: dict[str, list[str]] = {}
    for name, report in reports.items():
        headings += (*(f"{name}, {width} bits" for width in WIDTHS[name]), f"{name}, proposed")
        lowered = [layer for layer in report["layers"] if layer["trials"]]  # first and last layer are left out
        for layer in sorted(lowered, key=_worst, reverse=True):
            cells = found.setdefault(layer["name"], [layer["name"], f"{layer['weights']:,}"])
            divergence = {trial["width"]: trial["kl"] for trial in layer["trials"]}
            cells += [f"{divergence[width]:.5f}" for width in WIDTHS[name]]
            bits = report["proposal"]["bits"][layer["name"]]
            cells.append(f"{bits['weight_bits']}/{bits['activation_bits']}")
    return Rows(headings=headings, cells=list(found.values()))


def _worst(layer: dict[str, Any]) -> float:
    return max(float(trial["kl"]) for trial in layer["trials"])


def together_rows(reports: dict[str, dict[str, Any]]) -> Rows:
    """Return rows for all layers of each network together: unchanged, as proposed, and at one width."""
    cells = []
    for name, report in reports.items():
        proposal = report["proposal"]
        proposed = f"proposed (summed KL {proposal['summed_kl']:.5f})"
        cells.append(_together(name, "nothing lowered", report["bytes"], report["baseline"]))
        cells.append(_together(name, proposed, proposal["bytes"], proposal["measured"]))
        cells += [
            _together(name, f"all at {uniform['width']} bits", uniform["bytes"], uniform["measured"])
            for uniform in proposal["uniform"]
        ]
    return Rows(headings=("from", "bits", "packed weights", "KL", "cross-entropy", "accuracy"), cells=cells)


def _together(name: str, bits: str, size: int, measured: dict[str, float]) -> list[str]:
    kl, loss, accuracy = (measured[key] for key in ("kl", "loss", "accuracy"))
    return [name, bits, f"{size:,} B", f"{kl:.5f}", f"{loss:.4f}", f"{accuracy:.2f} %"]


if __name__ == "__main__":
    typer.run(main)
