"""`sensitivity`: measure which layers suffer most from fewer bits, and propose bits per layer for a size budget."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qil_deploy.errors import ConfigError
from qil_deploy.slow_imports import loading

if TYPE_CHECKING:
    from qil_deploy.training.mixed_precision import Proposal
    from qil_deploy.training.sensitivity import Probe, Sensitivity

SCHEMA = "qil_deploy.sensitivity/1"


class What(StrEnum):
    """The quantizers of a layer that are lowered."""

    weights = "weights"
    activations = "activations"
    both = "both"


class Placement(StrEnum):
    """Placement of quantizers in a float network."""

    integer = "integer"
    paper = "paper"


def sensitivity_command(  # noqa: PLR0913, PLR0917 - every argument is an option of its own
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A float or quantized checkpoint.")],
    bits: Annotated[str, typer.Option(help="Bit widths to try for each layer, separated by commas.")] = "4,3,2",
    what: Annotated[What, typer.Option(help="What of a layer is lowered.")] = What.both,
    edges: Annotated[
        bool, typer.Option("--edges", help="Also lower the weights of the first and last layers.")
    ] = False,
    limit: Annotated[int, typer.Option(metavar="N", help="Training images to measure on.")] = 1000,
    calibration_images: Annotated[
        int, typer.Option(metavar="N", help="Other images, to calibrate intervals on.")
    ] = 256,
    placement: Annotated[Placement, typer.Option(help="Placement for a float checkpoint.")] = Placement.integer,
    allow_float: Annotated[
        bool, typer.Option("--allow-float", help="Keep in float what has no integer form, of a float checkpoint.")
    ] = False,
    budget_bytes: Annotated[
        int | None, typer.Option(metavar="N", help="Propose bits within this size of the packed weights.")
    ] = None,
    budget_bits: Annotated[
        float | None, typer.Option(metavar="X", help="Propose bits within this average of stored bits per weight.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Write a recipe that trains the proposal.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the table.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write it as JSON, too.")] = None,
    trusted_model: Annotated[
        str | None, typer.Option("--model", metavar="MODULE:FUNCTION", help="Your function that builds the network.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of images.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of PyTorch. [default: all cores]")] = None,
) -> None:
    """Measure each layer's sensitivity to fewer bits, before any training, and propose bits for a size budget."""
    with loading("PyTorch"):
        import torch

        from qil_deploy.files import ensure_writable, write_text
        from qil_deploy.terminal import Console, Progress
        from qil_deploy.training.mixed_precision import budget_in_bytes, check_budget, propose, recipe_text
        from qil_deploy.training.pictures import plot_sensitivity
        from qil_deploy.training.sensitivity import Plan, Probe, measure_sensitivity

        from .sensitivity_tables import proposal_table, sensitivity_table

    _check_options(budget_bytes, budget_bits, recipe)
    for path in (recipe, plot, json_file):
        if path is not None:
            ensure_writable(path)
    if threads is not None:
        torch.set_num_threads(threads)
    plan = Plan(
        widths=parse_bits(bits),
        what=what.value,
        edges=edges,
        placement=placement.value,
        allow_float=allow_float,
        images=limit,
        calibration_images=calibration_images,
        seed=seed,
    )
    console = Console()
    with Progress(console=console, transient=True) as progress:
        probe = Probe(checkpoint, plan, trusted_model)
        budget = budget_bytes if budget_bits is None else budget_in_bytes(probe, budget_bits)
        if budget is not None:
            check_budget(probe, budget)  # before the long part
        if recipe is not None:
            recipe_text(probe, probe.bits, checkpoint, recipe.stem)  # likewise, whether there can be one
        measured = measure_sensitivity(probe, progress)
        proposal = None if budget is None else propose(probe, measured, budget)
    console.print(sensitivity_table(measured))
    console.print(_how_measured(probe, measured))
    if proposal is not None:
        console.print(proposal_table(probe, measured, proposal))
    if plot is not None:
        lowered = "weights and activations" if what is What.both else what.value
        plot_sensitivity(measured, proposal, plot, f"{checkpoint.stem}: {lowered} of one layer at fewer bits")
    if json_file is not None:
        write_text(json_file, json.dumps(_content(checkpoint, probe, measured, proposal), indent=2) + "\n")
    if recipe is not None and proposal is not None:
        write_text(recipe, recipe_text(probe, proposal.bits, checkpoint, recipe.stem))
        console.print(f"Train it with: python -m qil_deploy train {recipe}", soft_wrap=True)


def parse_bits(text: str) -> tuple[int, ...]:
    """Turn "4,3,2" into (4, 3, 2).

    Raises:
        ConfigError: an entry is not a whole number.
    """
    try:
        return tuple(int(entry) for entry in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--bits is {text!r}; give whole numbers separated by commas, like 4,3,2.") from error


def _check_options(budget_bytes: int | None, budget_bits: float | None, recipe: Path | None) -> None:
    if budget_bytes is not None and budget_bits is not None:
        raise ConfigError("--budget-bytes and --budget-bits say the same thing twice; give one of them.")
    if recipe is not None and budget_bytes is None and budget_bits is None:
        raise ConfigError("--recipe writes down a proposal, which needs --budget-bytes or --budget-bits.")


def _how_measured(probe: Probe, measured: Sensitivity) -> str:
    plan, baseline = probe.plan, measured.baseline
    return (
        f"Before training; BatchNorm's statistics estimated anew. {plan.images:,} images of the training split of "
        f"{probe.info.data}, intervals set from {plan.calibration_images:,} others (seed {plan.seed}). With nothing "
        f"lowered: cross-entropy {baseline.loss:.4f}, accuracy {baseline.accuracy:.2f} %. KL to that network's outputs "
        "and increase of the cross-entropy in nats per image, change of accuracy in points."
    )


def _content(checkpoint: Path, probe: Probe, measured: Sensitivity, proposal: Proposal | None) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "checkpoint": str(checkpoint),
        "kind": probe.info.kind,
        "data": probe.info.data,
        "split": "train",
        "plan": asdict(probe.plan),
        "baseline": asdict(measured.baseline),
        "bytes": measured.bytes,
        "layers": [
            {
                "name": layer.name,
                "weights": layer.weights,
                **layer.bits.model_dump(),
                "trials": [
                    {"width": trial.width, **trial.bits.model_dump(), **asdict(trial.measured)}
                    for trial in layer.trials
                ],
            }
            for layer in measured.layers
        ],
        "proposal": None
        if proposal is None
        else {**asdict(proposal), "bits": {name: bits.model_dump() for name, bits in proposal.bits.items()}},
    }
