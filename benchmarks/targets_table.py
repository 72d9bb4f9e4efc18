"""Run the same files on every target, and count the codes that differ from the integer reference.

    python benchmarks/targets_table.py --targets native,haswell,arm64 --page docs/targets.md

ResNet-20 comes from `zoo/fashion_mnist`. ResNet-18 and AlexNet at 224x224 get random weights distributed like trained
ones (`networks`) and enlarged Fashion-MNIST images. Every code is compared at every optimization level on a few images,
and the logits of more images at the default level; emulated processors get fewer.

Results of a target are kept in `OUT/MODEL.json` and not repeated as long as the model is the same, so that targets can
be added one at a time. A target that cannot run is left out of the table, and the reason is printed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from networks import (
    CLASS_NAMES,
    DATA,
    PREPROCESSING,
    colour_images,
    normalized_batches,
    quantized_network,
    random_network,
)
from qil_deploy.config import QuantConfig
from qil_deploy.datasets import load_batches
from qil_deploy.export import export_onnx
from qil_deploy.files import ensure_writable, write_text
from qil_deploy.reports import read_report, write_report
from qil_deploy.runtime_tests.exported_model import read_exported_model
from qil_deploy.runtime_tests.golden import write_golden
from qil_deploy.runtime_tests.reports import ModelFile
from qil_deploy.runtime_tests.targets import (
    RunOptions,
    Target,
    TargetResult,
    TargetsReport,
    find_target,
    target_names,
    target_state,
    verify_targets,
    write_golden_logits,
)
from qil_deploy.terminal import Console
from tables import Rows, console_table, markdown_table
from write_tables import with_tables

CALIBRATION_IMAGES = 8
TIMEOUT = 3600.0


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model to run.

    Attributes:
        name: name in the table.
        write: writes the file to a path, or None if `path` already exists.
        path: path of the file.
        images: number of test images on which every code is compared.
        logits, emulated_logits: number of test images on which the logits are compared; 0 for none.
    """

    name: str
    path: Path
    write: Callable[[Path], object] | None
    images: int
    logits: int
    emulated_logits: int


def main(
    targets: Annotated[str, typer.Option(help="Targets, separated by commas.")] = "native,haswell,arm64,wasm",
    models: Annotated[
        str, typer.Option(help="Models, separated by commas, with their names in the table; all if empty.")
    ] = "",
    zoo: Annotated[Path, typer.Option(help="Folder of the zoo.")] = Path("zoo/fashion_mnist"),
    out: Annotated[Path, typer.Option(help="Folder for models and reports.")] = Path("runs/benchmarks/targets"),
    page: Annotated[Path | None, typer.Option(help="A page into which the tables are also written.")] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Repeat models and targets that already have results.")
    ] = False,
) -> None:
    """Run the missing targets, and write the tables."""
    console = Console()
    wanted = [find_target(name) for text in targets.split(",") for name in target_names(text)]
    reports: dict[str, TargetsReport] = {}
    for subject in subjects(zoo, out):
        chosen = not models or subject.name in models.split(",")
        known = tried(subject, wanted if chosen else [], out / f"{subject.name}.json", console, again=again)
        if known:
            reports[subject.name] = merged(subject.path, known)
    rows = {"targets_codes": code_rows(reports), "targets_logits": logit_rows(reports)}
    if page is not None:
        text = with_tables(page.read_text(), {name: f"\n{markdown_table(table)}\n\n" for name, table in rows.items()})
        write_text(page, text)
    for title, table in zip(("Codes that differ", "Logits that differ"), rows.values(), strict=True):
        console.print(console_table(title, table))
    if any(report.exact is False for report in reports.values()):
        raise typer.Exit(1)


def tried(
    subject: Subject, targets: Sequence[Target], report: Path, console: Console, *, again: bool = False
) -> dict[str, TargetResult]:
    """Run a model on the targets that its report does not have yet; return all results by target.

    If there are targets to run on, the model is written if it is missing, and the report after each target.
    """
    ensure_writable(report)
    if targets and subject.write is not None and not subject.path.is_file():
        console.print(f"Writing {subject.path} ...")
        subject.write(subject.path)
    known = results_so_far(report, subject.path)
    with tempfile.TemporaryDirectory() as folder:
        for target in targets:
            if again or target.name not in known:
                known |= found_on(subject, target, Path(folder), console)
                write_report(report, merged(subject.path, known))
    return known


def found_on(subject: Subject, target: Target, folder: Path, console: Console) -> dict[str, TargetResult]:
    """Return the result of a target by its name, or nothing if it cannot run; the reason is then printed.

    Golden vectors that are missing from `folder` are written there, for the next target.
    """
    reason = target_state(target)
    if reason is None:
        console.print(f"{subject.name} on {target.name} ...")
        result = run(subject, target, folder)
        if result.failed is None:
            return {target.name: result}
        reason = result.failed
    console.print(f"{subject.name} on {target.name}: {reason}", soft_wrap=True)
    return {}


def subjects(zoo: Path, out: Path) -> list[Subject]:
    """Return the models of the table."""
    small = [
        Subject(
            name=f"resnet20_w{bits}a{bits}",
            path=zoo / f"w{bits}a{bits}.onnx",
            write=None,
            images=4,
            logits=10_000,
            emulated_logits=500,
        )
        for bits in (4, 3, 2)
    ]
    large = [
        Subject(
            name=f"{network}_w{bits}a{bits}",
            path=out / f"{network}_w{bits}a{bits}.onnx",
            write=writer(network, bits),
            images=1,
            logits=20,
            emulated_logits=0,
        )
        for network in ("resnet18", "alexnet")
        for bits in (4, 2)
    ]
    return small + large


def writer(network: str, bits: int) -> Callable[[Path], object]:
    """Return a function that quantizes and exports a network with random weights."""

    def write(path: Path) -> None:
        batches = normalized_batches(colour_images(CALIBRATION_IMAGES))
        config = QuantConfig(weight_bits=bits, activation_bits=bits)
        quantized = quantized_network(random_network(network, batches, seed=0), config, batches)
        export_onnx(quantized, path, preprocessing=PREPROCESSING, class_names=CLASS_NAMES, data=DATA)

    return write


def run(subject: Subject, target: Target, folder: Path) -> TargetResult:
    """Run a model on a target that is ready."""
    count = subject.logits if target.emulator is None else subject.emulated_logits
    golden, logits = folder / "codes.npz", folder / f"logits_{count}.npz"
    if not golden.is_file():
        write_golden(subject.path, evaluation_images(subject.path, subject.images), DATA, golden)
    if count and not logits.is_file():
        write_golden_logits(subject.path, evaluation_images(subject.path, count), DATA, logits)
    report = verify_targets(
        subject.path, [target], golden, logits=logits if count else None, options=RunOptions(timeout=TIMEOUT)
    )
    return report.targets[0]


def evaluation_images(model: Path, count: int) -> NDArray[np.uint8]:
    """Return the first test images of Fashion-MNIST in a model's shape, uint8 [count, C, H, W]."""
    shape = read_exported_model(model).preprocessing.shape
    return load_batches(DATA, shape=shape, batch_size=count).read(0, count).images


def results_so_far(report: Path, model: Path) -> dict[str, TargetResult]:
    """Return the results of targets for this exact file, by target name."""
    if not (report.is_file() and model.is_file()):
        return {}
    found = read_report(report, TargetsReport)
    if found.model.sha256 != ModelFile.of(model).sha256:
        return {}
    return {result.target: result for result in found.targets}


def merged(model: Path, results: dict[str, TargetResult]) -> TargetsReport:
    """Return one report of a model on all targets."""
    return TargetsReport(
        schema=TargetsReport.SCHEMA,
        model=ModelFile.of(model),
        exact=all(report.differing == 0 for result in results.values() for report in result.reports),
        targets=tuple(results.values()),
    )


def code_rows(reports: dict[str, TargetsReport]) -> Rows:
    """Return one row per model, one column per target: number of differing codes and of compared ones."""

    def cell(result: TargetResult) -> str:
        if result.codes is None:
            return ""
        return f"{result.codes.differing:,} of {result.codes.compared_elements:,}"

    return _rows(reports, cell)


def logit_rows(reports: dict[str, TargetsReport]) -> Rows:
    """Return one row per model, one column per target: differing logits, compared logits, and images."""

    def cell(result: TargetResult) -> str:
        if result.logits is None:
            return ""
        return f"{result.logits.differing:,} of {result.logits.compared_elements:,} ({result.logits.images:,} images)"

    return _rows(reports, cell)


def _rows(reports: dict[str, TargetsReport], cell: Callable[[TargetResult], str]) -> Rows:
    columns = list(dict.fromkeys(result.target for report in reports.values() for result in report.targets))
    cells = []
    for name, report in reports.items():
        found = {result.target: cell(result) for result in report.targets}
        cells.append([name, *(found.get(column, "") for column in columns)])
    return Rows(headings=("model", *columns), cells=[row for row in cells if any(row[1:])])


if __name__ == "__main__":
    typer.run(main)
