"""`demo`: every step of the package on scikit-learn's digits, in a minute or two."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qil_deploy.slow_imports import loading

RECIPE = Path("digits_resnet14")


def demo_command(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo_output"),
) -> None:
    """Train a small ResNet on digits, quantize it to 4 and 2 bits, export, verify bit for bit, and time it."""
    import shutil

    with loading("PyTorch"):
        from qil_deploy.terminal import Console, Progress
        from qil_deploy.training.freed_memory import keep_freed_memory
        from qil_deploy.training.recipe_file import load_recipe
        from qil_deploy.training.train import train

        from .deliver import deliver, delivery_table

    console = Console()
    recipe = load_recipe(RECIPE)
    run_folder = out / "run"
    # Always from the start: a demo that shows an earlier run's figures would prove nothing.
    shutil.rmtree(run_folder, ignore_errors=True)
    keep_freed_memory()
    console.rule("1. Train: float, then intervals at 5, 4, 3 and 2 bits")
    with Progress(console=console) as progress:
        result = train(recipe, run_folder, progress=progress)
    console.rule("2. Export to integer-only ONNX, run in ONNX Runtime, compare every logit, time")
    deliveries = deliver(result, out, console, trusted_model=recipe.model.name)
    pictures = [
        plot_stage(stage.checkpoint, out / f"{stage.name}_intervals.png", recipe.model.name)
        for stage in result.stages
        if stage.frozen
    ]
    console.rule("3. Result")
    console.print(delivery_table(deliveries))
    console.print(
        "Differing logits: ONNX Runtime at all four optimization levels and the frozen PyTorch model, against "
        "the integer reference in NumPy."
    )
    console.print(f"Models and reports are in {out}, learned intervals in {', '.join(map(str, pictures))}.")


def plot_stage(checkpoint: Path, picture: Path, trusted_model: str | None = None) -> Path:
    """Draw the learned intervals of a quantized checkpoint over its weights and some test activations.

    Args:
        checkpoint: as training writes it.
        picture: the file to draw to.
        trusted_model: the user's function that builds its network, `module:function`, where it has one.
    """
    import torch
    from torch import fx

    from qil_deploy.checkpoint import load_model
    from qil_deploy.datasets import load_images
    from qil_deploy.training.models import model_builder
    from qil_deploy.training.pictures import plot_intervals

    info, model = load_model(checkpoint, model_builder(trusted_model))
    if not isinstance(model, fx.GraphModule):
        raise TypeError(f"{checkpoint} holds no prepared model")
    images = load_images(info.data, "test", shape=info.preprocessing.shape).first(256)
    x = torch.from_numpy(info.preprocessing.normalize(images.images))
    plot_intervals(model, x, picture, checkpoint.stem)
    return picture
