"""`train`: carry out a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train_command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file, or the name of a shipped recipe.")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one entry of the recipe.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. [default: runs/NAME]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue after the last finished phase.")] = False,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Fuse the quantizers by torch.compile; needs a C++ compiler.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of PyTorch. [default: all cores]")] = None,
) -> None:
    """Train a float network, learn its intervals stage by stage, and freeze it."""
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from qil_deploy.quantizers import compile_quantizers
    from qil_deploy.training.recipe import load_recipe
    from qil_deploy.training.train import train

    from .tables import run_table

    loaded = load_recipe(recipe, tuple(changes or ()))
    folder = out or Path("runs") / loaded.name
    if threads is not None:
        torch.set_num_threads(threads)
    if compile_:
        compile_quantizers()
    console = Console(markup=False)
    with Progress(console=console) as progress:
        result = train(loaded, folder, resume=resume, progress=progress)
    console.print(run_table(result))
    console.print(f"Checkpoints and metrics are in {folder}.")
