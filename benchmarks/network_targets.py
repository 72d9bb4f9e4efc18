"""Compare every code of the smallest networks of the list on other instruction sets: emulated arm64 and a browser.

    python benchmarks/network_targets.py --page docs/network-list.md
    python benchmarks/network_targets.py timm/resnet10t --targets wasm

The script selects the timm networks with the fewest codes among those that `network_list.py` found to run with integers
only; these are also the fastest under an emulator. Each is exported as for the list, and every code of one image is
compared with the integer reference, at every optimization level, in the ONNX Runtime build that each target uses.

Results of a target are kept in `OUT/PACKAGE_NAME.json` and not repeated as long as the file is the same. The table is
written between `<!-- network_targets -->` and `<!-- end -->` on the page.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from network_list import ALL, CLASS_NAMES, DEFAULT_SIZE, SIZES, NetworkRow, images_for, path_of, prepared_network
from qil_deploy import freeze
from qil_deploy.export import export_onnx
from qil_deploy.files import write_text
from qil_deploy.reports import read_report
from qil_deploy.runtime_tests.targets import TargetsReport, find_target, target_names
from qil_deploy.terminal import Console
from tables import console_table, markdown_table
from targets_table import Subject, code_rows, merged, results_so_far, tried
from write_tables import with_tables


def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="PACKAGE/NAME", help="Networks. [default: ten]")] = None,
    targets: Annotated[str, typer.Option(help="Targets, separated by commas.")] = "arm64,wasm",
    rows: Annotated[Path, typer.Option(help="Folder with the list's result for each network.")] = Path("runs/networks"),
    count: Annotated[int, typer.Option(help="Number of networks if none are named.")] = 10,
    out: Annotated[Path, typer.Option(help="Folder for files and reports.")] = Path("runs/network_targets"),
    page: Annotated[Path | None, typer.Option(help="Page into which the table of all results is written.")] = None,
) -> None:
    """Run the networks and targets without results, and print the table of all results."""
    console = Console()
    wanted = [find_target(name) for text in targets.split(",") for name in target_names(text)]
    for name in names or smallest(rows, count):
        tried(subject_of(name, out), wanted, path_of(out, name), console)
    reports = known_reports(out)
    table = code_rows(reports)
    console.print(console_table("Codes that differ", table))
    if page is not None:
        write_text(page, with_tables(page.read_text(), {"network_targets": f"\n{markdown_table(table)}\n\n"}))
    if any(report.exact is False for report in reports.values()):
        raise typer.Exit(1)


def smallest(rows: Path, count: int) -> list[str]:
    """Return the timm networks with the fewest codes among those with integers only."""
    files = [path_of(rows, name) for name in ALL if name.startswith("timm/")]
    known = [read_report(path, NetworkRow) for path in files if path.is_file()]
    integers = sorted((row for row in known if row.kind == "integers"), key=lambda row: row.codes)
    return [row.name for row in integers[:count]]


def subject_of(name: str, out: Path) -> Subject:
    """Return a network in the form that `targets_table` runs."""
    path = path_of(out, name).with_suffix(".onnx")
    return Subject(name=name, path=path, write=writer(name), images=1, logits=0, emulated_logits=0)


def writer(name: str) -> Callable[[Path], object]:
    """Return a function that exports a network as the list does."""

    def write(path: Path) -> None:
        images, preprocessing = images_for(SIZES.get(name, DEFAULT_SIZE))
        x = torch.from_numpy(preprocessing.normalize(images))
        _, prepared = prepared_network(name, preprocessing, x)
        path.parent.mkdir(parents=True, exist_ok=True)
        export_onnx(freeze(prepared), path, preprocessing=preprocessing, class_names=CLASS_NAMES)

    return write


def known_reports(out: Path) -> dict[str, TargetsReport]:
    """Return the reports of all networks of the list by name."""
    reports = {}
    for name in ALL:
        model = subject_of(name, out).path
        known = results_so_far(path_of(out, name), model)
        if known:
            reports[name] = merged(model, known)
    return reports


if __name__ == "__main__":
    typer.run(main)
