"""Fashion-MNIST's ResNet-20 quantized without its training data: on digits, on noise, and on its own images unlabelled.

    python benchmarks/quantizer_only.py --out runs/quantizer_only

    digits    the recipe fashion_mnist_resnet20_by_digits
    noise     the recipe fashion_mnist_resnet20_by_noise
    own       as digits, but on as many images of Fashion-MNIST's training set, without their labels

What is finished is not trained again; what was interrupted goes on. Written are the runs, `OUT/table.json` and
`OUT/table.md`, which docs/training-without-data.md shows.
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
    """One stage; accuracies on all test images of Fashion-MNIST, in percent.

    Attributes:
        images: one of `IMAGES`.
        stage: bits, such as `w4a4`.
        float_accuracy: of the float network.
        at_start: of intervals and scales set from the images, nothing trained.
        trained: after the last epoch, with fake quantization.
        frozen_at_once, frozen: in the runtime's arithmetic, before and after the frozen epochs.
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
    images: Annotated[str, typer.Option(help="Which images, separated by commas.")] = ",".join(IMAGES),
    weights: Annotated[str | None, typer.Option(help="Float checkpoint. [default: the recipes']")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of PyTorch.")] = None,
) -> None:
    """Train what is missing, and write the table."""
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
    """Return the recipe that learns from these images."""
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
    """One row per images and stage; the last column compares the last accuracy with that of the float network."""
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
