"""Train ResNet-20 on Fashion-MNIST at 5, 4, 3 and 2 bits over several seeds, and compare other ways to train it.

    python benchmarks/fashion_mnist_table.py --seeds 0,1,2 --compile --out runs/fashion_mnist_table

For each seed, every variant starts from the same float network, sees the same images and has the same number of epochs:

    progressive    the recipe: 5, 4, 3, 2 bits, each stage from the previous one
    direct         2 bits directly from the float network, with the epochs of all four stages
    gamma          progressive, with a trained exponent in each weight transformer
    lsq            direct, with learned steps instead of learned intervals (`method = "lsq"`)
    continued      the float network trained further in float, with the epochs and rate of the stages down to 4 bits:
                   the gain from more epochs alone

`progressive` runs for every seed, the others for the first seeds only (`--variant-seeds`). `--budget` sets the number
of epochs: `recipe` to see the accuracy of each bit width, `short`, on half the images, to see which variant is fastest.
Finished runs are not repeated; interrupted runs are resumed. The script writes the runs, `OUT/table.json` and
`OUT/table.md`.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from accelerate import Accelerator
from torch import fx

from qil_deploy.checkpoint import load_model
from qil_deploy.files import ensure_writable, write_text
from qil_deploy.integers import freeze
from qil_deploy.quantizers import compile_quantizers
from qil_deploy.terminal import Console, Progress
from qil_deploy.training.freed_memory import keep_freed_memory
from qil_deploy.training.recipe import Recipe
from qil_deploy.training.recipe_file import load_recipe
from qil_deploy.training.run import Run, Settings
from qil_deploy.training.train import StageResult, carry_out
from tables import Rows, console_table, markdown_table
from write_tables import with_tables

RECIPE = "fashion_mnist_resnet20"
VARIANTS = ("progressive", "direct", "gamma", "lsq", "continued")
CONTINUED_STAGES = 2  # of the recipe: 5 and 4 bits
# Changes to the recipe by budget. With the short one, accuracy is still rising fast at the end of 3 and of 2 bits.
BUDGETS = {
    "recipe": (),
    "short": (
        *("train_images=30000", "float_training.epochs=5"),
        *("stages.1.epochs=1", "stages.2.epochs=1", "stages.3.epochs=2"),
        *("stages.1.learning_rate=0.02", "stages.2.learning_rate=0.02", "stages.3.learning_rate=0.02"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of one stage of one run; accuracies on all test images, in percent, after the last epoch.

    Attributes:
        variant: one of `VARIANTS`.
        seed: seed of the recipe.
        stage: `float`, `float, trained on`, or bit widths such as `w4a4`.
        accuracy: accuracy with fake quantization.
        frozen_accuracy: accuracy of the same weights, frozen as for export; None for float networks.
    """

    variant: str
    seed: int
    stage: str
    accuracy: float
    frozen_accuracy: float | None


def main(
    out: Annotated[Path, typer.Option(help="Folder for runs and tables.")] = Path("runs/fashion_mnist_table"),
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    variant_seeds: Annotated[str, typer.Option(help="Seeds of the other variants.")] = "0",
    variants: Annotated[str, typer.Option(help="Variants, separated by commas.")] = ",".join(VARIANTS),
    budget: Annotated[str, typer.Option(help=f"Epochs: {' or '.join(BUDGETS)}.")] = "recipe",
    page: Annotated[Path | None, typer.Option(help="A page into which the table is also written.")] = None,
    threads: Annotated[int | None, typer.Option(help="Number of PyTorch threads.")] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Fuse the quantizers with torch.compile.")] = False,
) -> None:
    """Train the missing runs, and write the table."""
    console = Console()
    if budget not in BUDGETS:
        raise typer.BadParameter(f"--budget is {budget!r}; choose from {', '.join(BUDGETS)}")
    chosen = variants.split(",")
    if chosen[0] != "progressive" or not set(chosen) <= set(VARIANTS):
        raise typer.BadParameter(
            f"--variants is {variants!r}; start with progressive, followed by any of {', '.join(VARIANTS)}"
        )
    ensure_writable(out / "table.json")
    if threads is not None:
        torch.set_num_threads(threads)
    compile_quantizers(compile_)
    keep_freed_memory()
    outcomes: list[Outcome] = []
    for variant in chosen:
        for seed in numbers(seeds if variant == "progressive" else variant_seeds):
            recipe = recipe_of(variant, seed, budget)
            folder = out / f"{variant}_{seed}"
            source = out / f"progressive_{seed}" / "float.safetensors"
            if variant == "continued":
                recipe = continued(recipe, source)
            elif variant != "progressive":
                share_float(source, folder)
            outcomes += outcomes_of(variant, seed, run_of(recipe, folder))
    write_text(out / "table.json", json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n")
    rows = table_rows(outcomes)
    write_text(out / "table.md", markdown_table(rows) + "\n")
    if page is not None:
        write_text(page, with_tables(page.read_text(), {f"fashion_mnist_{budget}": f"\n{markdown_table(rows)}\n\n"}))
    console.print(console_table("Accuracy on Fashion-MNIST, in percent", rows))


def numbers(text: str) -> list[int]:
    """Return the integers of a comma-separated list."""
    return [int(part) for part in text.split(",") if part]


def recipe_of(variant: str, seed: int, budget: str) -> Recipe:
    """Return the recipe of a variant: the shipped one, with the epochs of a budget and without its frozen epochs."""
    recipe = load_recipe(Path(RECIPE), (f"seed={seed}", *BUDGETS[budget]))
    stages = [stage.model_copy(update={"frozen_epochs": 0}) for stage in recipe.stages]
    if variant in ("direct", "lsq"):
        epochs = sum(stage.epochs for stage in stages)
        stages = [stages[-1].model_copy(update={"epochs": epochs, "from_float": True})]
    method = "lsq" if variant == "lsq" else recipe.method
    return recipe.model_copy(update={"stages": tuple(stages), "train_gamma": variant == "gamma", "method": method})


def continued(recipe: Recipe, weights: Path) -> Recipe:
    """Return a recipe that continues to train a float network for the epochs of its first stages."""
    stages = recipe.stages[:CONTINUED_STAGES]
    update = {"epochs": sum(stage.epochs for stage in stages), "learning_rate": stages[-1].learning_rate}
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"weights": str(weights)}),
            "float_training": recipe.float_training.model_copy(update=update),
            "stages": (),
        }
    )


def share_float(source: Path, folder: Path) -> None:
    """Copy the float network of another run, since this run would train exactly the same one."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / source.name).exists():
        shutil.copyfile(source, folder / source.name)


def run_of(recipe: Recipe, folder: Path) -> Run:
    """Return the run that trains a variant."""
    return Run(recipe, folder, Progress(), Accelerator(), resume=True, settings=Settings(save_minutes=2.0))


def outcomes_of(variant: str, seed: int, run: Run) -> list[Outcome]:
    """Train a run and return one outcome per stage."""

    def outcome(stage: StageResult) -> Outcome:
        return Outcome(
            variant=variant,
            seed=seed,
            stage="float, trained on" if variant == "continued" else stage.name,
            accuracy=stage.accuracy,
            frozen_accuracy=frozen_accuracy(run, stage) if stage.name != "float" else None,
        )

    result = carry_out(run)
    return [outcome(stage) for stage in (result.float_result, *result.stages)]


def frozen_accuracy(run: Run, stage: StageResult) -> float:
    """Freeze a finished stage and return its accuracy, in percent."""
    _, model = load_model(stage.checkpoint, run.builder)
    if not isinstance(model, fx.GraphModule):
        raise TypeError(f"{stage.checkpoint} contains no prepared model")
    return run.accuracy(freeze(model))


def table_rows(outcomes: Sequence[Outcome]) -> Rows:
    """Return one row per variant and stage: mean, spread and the mean difference from float of the same seed."""
    floats = {outcome.seed: outcome.accuracy for outcome in outcomes if outcome.stage == "float"}
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.variant, outcome.stage), []).append(outcome)
    cells = []
    for (variant, stage), members in groups.items():
        found = [member.accuracy for member in members]
        differences = [member.accuracy - floats[member.seed] for member in members]
        frozen = [member.frozen_accuracy for member in members if member.frozen_accuracy is not None]
        cells.append(
            [
                variant,
                stage,
                str(len(members)),
                f"{statistics.fmean(found):.2f}",
                f"{min(found):.2f} to {max(found):.2f}" if len(found) > 1 else "",
                "" if stage == "float" else f"{statistics.fmean(differences):+.2f}",
                f"{statistics.fmean(frozen):.2f}" if frozen else "",
            ]
        )
    return Rows(headings=("training", "stage", "seeds", "mean", "spread", "to float", "mean, frozen"), cells=cells)


if __name__ == "__main__":
    typer.run(main)
