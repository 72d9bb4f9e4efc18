"""Quantize Fashion-MNIST's ResNet-20 without its training data: on digits, noise, and its own unlabelled images.

    python benchmarks/quantizer_only.py --out runs/quantizer_only

    digits    the recipe fashion_mnist_resnet20_by_digits
    noise     the recipe fashion_mnist_resnet20_by_noise
    own       like digits, but on the same number of Fashion-MNIST training images, without their labels

Finished runs are not repeated; interrupted runs are resumed. The script writes the runs, `OUT/table.json` and
`OUT/table.md`, which is shown in docs/training-without-data.md.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from qil_deploy.checkpoint import read_checkpoint
from qil_deploy.files import ensure_writable, write_text
from qil_deploy.terminal import Console
from qil_deploy.training.freed_memory import keep_freed_memory
from qil_deploy.training.recipe import Recipe
from qil_deploy.training.recipe_file import load_recipe
from qil_deploy.training.run import Settings
from qil_deploy.training.train import RunResult, train
from tables import Rows, console_table, markdown_table

DIGITS = "fashion_mnist_resnet20_by_digits"
NOISE = "fashion_mnist_resnet20_by_noise"
OWN_CHANGES = ('name="fashion_mnist_resnet20_by_own"', 'quantizer_only.images="fashion-mnist"')
DIGITS_IMAGES = 1437
IMAGES = ("digits", "noise", "own")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of one stage; accuracies on all Fashion-MNIST test images, in percent.

    Attributes:
        images: one of `IMAGES`.
        stage: bit widths, such as `w4a4`.
        float_accuracy: accuracy of the float network.
        at_start: accuracy with intervals and scales set from the images and nothing trained.
        trained: accuracy after the last epoch, with fake quantization.
        frozen_at_once, frozen: accuracy in the runtime's arithmetic, before and after the frozen epochs.
    """

    images: str
    stage: str
    float_accuracy: float
    at_start: float
    trained: float
    frozen_at_once: float | None
    frozen: float | None


def main(
    out: Annotated[Path, typer.Option(help="Folder for runs and tables.")] = Path("runs/quantizer_only"),
    images: Annotated[str, typer.Option(help="Kinds of images, separated by commas.")] = ",".join(IMAGES),
    weights: Annotated[str | None, typer.Option(help="Float checkpoint. [default: the recipes']")] = None,
    threads: Annotated[int | None, typer.Option(help="Number of PyTorch threads.")] = None,
) -> None:
    """Train the missing runs, and write the table."""
    console = Console()
    ensure_writable(out / "table.json")
    if threads is not None:
        torch.set_num_threads(threads)
    keep_freed_memory()
    outcomes: list[Outcome] = []
    for name in images.split(","):
        result = train(recipe_of(name, weights), out / name, resume=True, settings=Settings(save_minutes=1.0))
        outcomes += outcomes_of(name, result)
        rows = table_rows(outcomes)
        write_text(out / "table.json", json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n")
        write_text(out / "table.md", markdown_table(rows) + "\n")
        console.print(console_table("Accuracy on Fashion-MNIST, in percent", rows))


def recipe_of(images: str, weights: str | None) -> Recipe:
    """Return the recipe that trains on these images."""
    changes = () if weights is None else (f"quantizer_only.weights={json.dumps(weights)}",)
    if images == "noise":
        return load_recipe(Path(NOISE), changes)
    if images == "own":
        limit = f"quantizer_only.limit={DIGITS_IMAGES}"
        return load_recipe(Path(DIGITS), (*changes, *OWN_CHANGES, limit))
    return load_recipe(Path(DIGITS), changes)


def outcomes_of(images: str, result: RunResult) -> list[Outcome]:
    """Return one outcome per quantized stage."""
    return [
        Outcome(
            images=images,
            stage=stage.name,
            float_accuracy=result.float_result.accuracy,
            at_start=read_checkpoint(stage.checkpoint)[0].metrics["accuracy_at_start"],
            trained=stage.accuracy,
            frozen_at_once=stage.frozen_at_once,
            frozen=stage.frozen_accuracy,
        )
        for stage in result.stages
    ]


def table_rows(outcomes: list[Outcome]) -> Rows:
    """Return one row per kind of images and stage; the last column compares the final accuracy with float."""
    cells = []
    for outcome in outcomes:
        last = outcome.trained if outcome.frozen is None else outcome.frozen
        accuracies = [outcome.float_accuracy, outcome.at_start, outcome.trained, outcome.frozen_at_once, outcome.frozen]
        cells.append(
            [
                f"{outcome.images}, {outcome.stage}",
                *("" if accuracy is None else f"{accuracy:.2f}" for accuracy in accuracies),
                f"{last - outcome.float_accuracy:+.2f}",
            ]
        )
    headings = ("images", "float", "nothing trained", "trained", "frozen at once", "frozen, trained on", "to float")
    return Rows(headings=headings, cells=cells)


if __name__ == "__main__":
    typer.run(main)
