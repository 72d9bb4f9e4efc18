"""`train`: carry out a recipe."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from qil_deploy.slow_imports import loading


class Precision(StrEnum):
    """Types that convolutions and linear layers compute in while training."""

    no = "no"
    bf16 = "bf16"
    fp16 = "fp16"


def train_command(  # noqa: PLR0913, PLR0917 - every argument is an option of its own
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file, or the name of a shipped recipe.")],
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one entry of the recipe.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. [default: runs/NAME]")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run from its last saved state.")
    ] = False,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Fuse the quantizers with torch.compile; needs a C++ compiler.")
    ] = False,
    allow_float: Annotated[
        bool,
        typer.Option("--allow-float", help="Keep what has no integer form in float: short for --set allow_float=true."),
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of PyTorch. [default: all cores]")] = None,
    mixed_precision: Annotated[
        Precision, typer.Option(help="Precision of convolutions and linear layers; quantizers stay float32.")
    ] = Precision.no,
    save_minutes: Annotated[float, typer.Option(min=0, help="Minutes between saved states within a phase.")] = 10.0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode the images of a folder.")] = 4,
    report: Annotated[bool, typer.Option(help="Write report.html at the end.")] = True,
) -> None:
    """Train a float network, learn its intervals stage by stage, and freeze it.

    Several processes train together: `accelerate launch -m qil_deploy train ...` or `torchrun -m qil_deploy train ...`.
    """
    with loading("PyTorch"):
        import torch
        from accelerate import PartialState

        from qil_deploy.quantizers import compile_quantizers
        from qil_deploy.terminal import Console
        from qil_deploy.training.freed_memory import keep_freed_memory
        from qil_deploy.training.pictures import write_html_report
        from qil_deploy.training.recipe_file import load_recipe
        from qil_deploy.training.run import Settings
        from qil_deploy.training.train import train

        from .tables import run_table

    loaded = load_recipe(recipe, (*(changes or ()), *(["allow_float=true"] if allow_float else [])))
    folder = out or Path("runs") / loaded.name
    if threads is not None:
        torch.set_num_threads(threads)
    if compile_:
        compile_quantizers()
    keep_freed_memory()
    settings = Settings(mixed_precision=mixed_precision.value, save_minutes=save_minutes, workers=workers)
    result = train(loaded, folder, resume=resume, settings=settings)
    state = PartialState()
    # Together, before the first process continues alone: one that leaves a group open may abort when it exits.
    state.wait_for_everyone()
    state.destroy_process_group()
    if state.is_main_process:
        console = Console()
        console.print(run_table(result))
        console.print(f"Checkpoints and metrics are in {folder}; curves: tensorboard --logdir {folder / 'curves'}.")
        if report:
            write_html_report(folder, trusted_model=loaded.model.name, device=state.device)
            console.print(f"Intervals, shares and confusions are in {folder / 'report.html'}.")
