"""Create a folder of the zoo: train a recipe, export, verify on the whole test set, time, write the README's table.

    python benchmarks/make_zoo.py fashion_mnist_resnet20 --run runs/resnet20 --out zoo/fashion_mnist --compile

If the run is finished, training is skipped, so that the files and the table can be recreated in minutes. If the run
has been deleted, `--again` recreates them from the zoo's checkpoints. `--trained` uses networks that `equal_epochs`
trained for the same number of epochs (`TRAINED` has their names), and freezes the quantized ones without further
training:

    python benchmarks/make_zoo.py --out zoo/fashion_mnist --again
    python benchmarks/make_zoo.py --out zoo/fashion_mnist --trained runs/equal_epochs
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from qil_deploy.accuracy import top1_percent
from qil_deploy.checkpoint import load_model, read_checkpoint, save_checkpoint
from qil_deploy.commands.deliver import HEADINGS, Delivery, deliver, delivery_cells, delivery_table
from qil_deploy.datasets import load_images
from qil_deploy.errors import DataError
from qil_deploy.files import write_text
from qil_deploy.integers import freeze, predictions
from qil_deploy.network import PreparedModel
from qil_deploy.quantizers import compile_quantizers
from qil_deploy.terminal import Console, Progress
from qil_deploy.training.freed_memory import keep_freed_memory
from qil_deploy.training.models import build_model
from qil_deploy.training.recipe import Recipe
from qil_deploy.training.recipe_file import load_recipe
from qil_deploy.training.train import RunResult, StageResult, train
from training_bench import DATA, RESNET20

RECIPE = "fashion_mnist_resnet20"
TRAINED = {  # by what its files are called in the zoo
    "float": "float_trained_on",
    "w4a4": "qil_w4a4_together",
    "w3a3": "qil_w3a3_together",
    "w2a2": "qil_w2a2_plain",
}


def main(
    out: Annotated[Path, typer.Option(help="Folder of the zoo to write to.")],
    recipe: Annotated[Path, typer.Argument(help="A TOML file, or the name of a shipped recipe.")] = Path(RECIPE),
    run: Annotated[Path, typer.Option(help="Folder of the run. [default: runs/NAME]")] = Path("runs"),
    compile_: Annotated[bool, typer.Option("--compile", help="Train with fused quantizers.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Export the zoo's own checkpoints again.")] = False,
    trained: Annotated[
        Path | None, typer.Option(help="A folder written by `equal_epochs`, instead of a recipe.")
    ] = None,
) -> None:
    """Train a recipe, or use trained networks; export, verify and time them, and write the results."""
    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    if trained is not None:
        take_networks(trained, out)
        deliveries = deliver(result_of(out), out, console)
        write_text(out / "README.md", readme_of_networks(deliveries))
    elif again:
        deliveries = deliver(result_of(out), out, console)
        write_text(out / "README.md", with_table((out / "README.md").read_text(), table(deliveries)))
    else:
        loaded = load_recipe(recipe)
        folder = run / loaded.name if run == Path("runs") else run
        compile_quantizers(compile_)
        keep_freed_memory()
        with Progress(console=console) as progress:
            result = train(loaded, folder, resume=True, progress=progress)
        deliveries = deliver(result, out, console)
        for checkpoint in checkpoints(result):
            shutil.copyfile(checkpoint, out / checkpoint.name)
        shutil.copyfile(folder / "metrics.jsonl", out / "metrics.jsonl")
        command = f"{recipe} --run {folder} --out {out}" + (" --compile" if compile_ else "")
        write_text(out / "README.md", readme(loaded, command, deliveries))
    console.print(delivery_table(deliveries))


def take_networks(trained: Path, zoo: Path) -> None:
    """Copy the networks of `equal_epochs` into a folder of the zoo, and freeze the quantized ones.

    Raises:
        DataError: one of them is missing.
    """
    sources = {name: trained / f"{source}.safetensors" for name, source in TRAINED.items()}
    missing = [str(path) for path in sources.values() if not path.is_file()]
    if missing:
        raise DataError(f"{missing[0]} is missing; train it with benchmarks/equal_epochs.py --out {trained}.")
    (zoo / "metrics.jsonl").unlink(missing_ok=True)  # of a recipe
    for name, source in sources.items():
        shutil.copyfile(source, zoo / f"{name}.safetensors")
        info, model = load_model(source, build_model)
        if isinstance(model, PreparedModel):
            test = load_images(info.data or "", "test", preprocessing=info.preprocessing)
            frozen = freeze(model)
            right = int((predictions(frozen, test.images, info.preprocessing) == test.labels).sum())
            accuracy = top1_percent(right, len(test))
            metrics = {"accuracy": accuracy, "accuracy_frozen_at_once": accuracy}
            after = info.model_copy(update={"kind": "frozen", "metrics": metrics})
            save_checkpoint(zoo / f"{name}_frozen.safetensors", after, frozen)


def result_of(zoo: Path) -> RunResult:
    """Return the result of the run whose checkpoints are in a folder of the zoo."""

    def stage(path: Path) -> StageResult:
        frozen = path.with_name(f"{path.stem}_frozen.safetensors")
        after = read_checkpoint(frozen)[0].metrics if frozen.is_file() else {}
        return StageResult(
            name=path.stem,
            checkpoint=path,
            accuracy=read_checkpoint(path)[0].metrics["accuracy"],
            frozen=frozen if after else None,
            frozen_at_once=after.get("accuracy_frozen_at_once"),
            frozen_accuracy=after.get("accuracy"),
        )

    stages = sorted(zoo.glob("w?a?.safetensors"), reverse=True)
    return RunResult(float_result=stage(zoo / "float.safetensors"), stages=tuple(map(stage, stages)))


def with_table(text: str, new: str) -> str:
    """Return a README of the zoo with a new table in place of its old one (the lines that begin with a bar)."""
    lines = text.splitlines(keepends=True)
    (first, *_), rest = [i for i, line in enumerate(lines) if line.startswith("|")], lines
    return "".join(rest[:first]) + new + "\n" + "".join(line for line in rest[first:] if not line.startswith("|"))


def checkpoints(result: RunResult) -> list[Path]:
    """Return the checkpoints to keep: the float network, and every frozen stage before and after freezing."""
    kept = [result.float_result.checkpoint]
    for stage in result.stages:
        if stage.frozen is not None:
            kept += [stage.checkpoint, stage.frozen]
    return kept


def table(deliveries: list[Delivery]) -> str:
    """Return the table of a zoo's README."""
    rows = [HEADINGS, tuple("---" for _ in HEADINGS)]
    rows += [tuple(delivery_cells(delivery, deliveries[0])) for delivery in deliveries]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def readme(recipe: Recipe, command: str, deliveries: list[Delivery]) -> str:
    """Return the text of the zoo's README: a table of figures, their meaning, and how to reproduce them."""
    stages = ", ".join(
        f"{stage.name} ({stage.epochs} epochs" + (f" and {stage.frozen_epochs} frozen)" if stage.frozen_epochs else ")")
        for stage in recipe.stages
    )
    return f"""# {recipe.model.name} on {recipe.data}

{explained_table(deliveries)}

Float: {recipe.float_training.epochs} epochs. Then {stages}. `metrics.jsonl` has the loss and accuracy of each epoch.

To reproduce:

    python benchmarks/make_zoo.py {command}
"""


def readme_of_networks(deliveries: list[Delivery]) -> str:
    """Return the text of the zoo's README for networks of `equal_epochs`."""
    return f"""# {RESNET20.network} on {DATA}

{explained_table(deliveries)}

Every network starts from a float network of 12 epochs and is trained for 12 more (seed 0): in float, or quantized
directly to these bits. 2 bits learn from labels alone, at a rate of 0.1; 4 and 3 bits with the float network as
teacher, scaled gradients of roundings and little weight decay, 3 bits also with `returning_weights` and lower rates
([docs/accuracy.md](../../docs/accuracy.md#at-equal-epochs) lists the settings and compares them with others). There
were no frozen epochs, so both frozen columns are the same.

To reproduce:

    python benchmarks/equal_epochs.py --out runs/equal_epochs --seeds 0 --compile \\
        --only 'trained on in float,w4a4 qil together,w3a3 qil together,w2a2 qil plain'
    python benchmarks/make_zoo.py --out zoo/fashion_mnist --trained runs/equal_epochs
"""


def explained_table(deliveries: list[Delivery]) -> str:
    """Return the table of a zoo's README and the explanation of its columns."""
    return f"""{table(deliveries)}

Accuracy is top-1 on all {deliveries[0].images:,} test images. `w4a4` means 4-bit weights and activations, 7-bit weights
and 8-bit codes in the first and last layer, 8-bit codes on the residual stream: integers from image to logits.

- *accuracy before freezing*: the trained network with fake quantization. *Frozen at once*: the same weights in the
  runtime's integer arithmetic. *Frozen, trained on*: after the frozen epochs at the end of the stage; this network is
  exported.
- *differing logits*: the number of logits, over all images, that differ from the integer reference in ONNX Runtime (the
  worst of its four graph-optimization levels) or the frozen PyTorch model. `*_verify.json` lists each comparison.
- *changed predictions*: images whose class differs from that before freezing (including training in between).
- *file*: size of the ONNX file (`NAME.onnx`) with packed weights, and its ratio to the float file. *latency*: median of
  one image on one thread; `bench.json` has every run and the machine."""


if __name__ == "__main__":
    typer.run(main)
