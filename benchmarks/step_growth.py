"""Measure how the cost of a quantized optimizer step relative to a float one grows with batch size and depth.

    python benchmarks/step_growth.py --out runs/benchmarks

Steps, rounds and ratios are those of `step_time`: fused quantizers, 4 bits, `integer` placement, CIFAR-style ResNets. A
step with a teacher as large as the network is also measured; the teacher computes its logits in each step, so it adds a
forward pass. The script writes the report `OUT/step_growth.json`, from which `write_tables.py` generates the table of
docs/benchmarks.md and its plot (`step_growth_plot.py`). Measure on an otherwise idle machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import typer
from torch import nn

from exporters import goal_rows
from goals import Verdict
from qil_deploy.runtime_tests import write_report
from qil_deploy.runtime_tests.environment import Environment, describe_environment
from qil_deploy.terminal import Console, Progress
from step_time import COMPILED_GOAL, GAMMA_GOAL, StepTime, measure, summarize
from tables import Rows, console_table
from training_steps import (
    Folder,
    Repeats,
    Seed,
    Size,
    Step,
    Threads,
    Variant,
    Warmup,
    begin,
    float_model,
    images_of,
    machine_line,
    model_of,
    step_of,
)

QUANTIZED = Variant(placement="integer", compiled=True)
MODELS = {
    "float": Variant(placement=None),
    "quantized": QUANTIZED,
    "gamma": Variant(placement="integer", train_gamma=True, compiled=True),
}
TAUGHT = "taught"
GOALS = {"quantized": COMPILED_GOAL, "gamma": GAMMA_GOAL}
BATCHES = (16, 32, 64, 128, 256)
NETWORKS = ("resnet8", "resnet14", "resnet20", "resnet32", "resnet56")
USUAL_NETWORK, USUAL_BATCH = "resnet20", 64
CASES = tuple((USUAL_NETWORK, batch) for batch in BATCHES) + tuple(
    (network, USUAL_BATCH) for network in NETWORKS if network != USUAL_NETWORK
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network and batch size.

    Attributes:
        network: name in `training.models.MODELS`.
        layers: number of its convolutions and linear layers.
        batch: images per step.
        steps: measured steps, of `MODELS` and `TAUGHT`.
    """

    network: str
    layers: int
    batch: int
    steps: tuple[StepTime, ...]


@dataclass(frozen=True, kw_only=True)
class StepGrowthReport:
    """Measurements of all cases; attributes as in `step_time.StepTimeReport`."""

    SCHEMA: ClassVar[str] = "qil_deploy.benchmarks.step_growth/1"

    schema: str
    size: int
    threads: int
    seed: int
    load: float | None
    cases: tuple[Case, ...]
    torch: str
    environment: Environment


def main(
    out: Folder = Path("runs/benchmarks"),
    size: Size = 32,
    threads: Threads = 2,
    repeats: Repeats = 30,
    warmup: Warmup = 3,
    seed: Seed = 0,
) -> None:
    """Time steps of networks of several depths, and of one network with several batch sizes."""
    console = Console()
    load = begin(out / "step_growth.json", threads)
    cases = []
    with Progress(console=console, transient=True) as progress:
        for network, batch in CASES:
            steps, layers = make_steps(network, batch=batch, size=size, seed=seed)
            samples = measure(steps, repeats=repeats, warmup=warmup, seed=seed, progress=progress)
            times = tuple(summarize(samples, seed=seed))
            cases.append(Case(network=network, layers=layers, batch=batch, steps=times))
    report = StepGrowthReport(
        schema=StepGrowthReport.SCHEMA,
        size=size,
        threads=threads,
        seed=seed,
        load=load,
        cases=tuple(cases),
        torch=torch.__version__,
        environment=describe_environment(),
    )
    write_report(out / "step_growth.json", report)
    console.print(console_table(where(report), growth_rows(report)))
    console.print(console_table("goals", goal_rows(judge(report.cases))))


def make_steps(network: str, *, batch: int, size: int, seed: int) -> tuple[dict[str, Step], int]:
    """Return a function that takes one step for each model, by name, and the number of layers with weights."""
    images = images_of(batch=batch, size=size, seed=seed)
    x, labels = images.x, images.labels
    steps = {
        name: step_of(model_of(network, variant, images, seed=seed), x, labels, compiled=variant.compiled)
        for name, variant in MODELS.items()
    }
    teacher = float_model(network, seed=seed).eval()
    pupil = model_of(network, QUANTIZED, images, seed=seed)
    steps[TAUGHT] = step_of(pupil, x, labels, compiled=QUANTIZED.compiled, teacher=teacher)
    return steps, sum(isinstance(module, nn.Conv2d | nn.Linear) for module in teacher.modules())


def judge(cases: Sequence[Case]) -> list[Verdict]:
    """Return a verdict for every goal, on the most expensive case."""
    ratios = {name: [step.ratio for case in cases for step in case.steps if step.model == name] for name in GOALS}
    return [
        Verdict(
            goal=f"{name}, the costliest case: at most {bound:g} of a float step",
            bound=bound,
            measured=max(ratios[name]),
            met=max(ratios[name]) <= bound,
        )
        for name, bound in GOALS.items()
    ]


def growth_rows(report: StepGrowthReport) -> Rows:
    """Return one row per case: the float step, and the additional cost of the others as a share of it."""
    cells = []
    for case in report.cases:
        steps = {step.model: step for step in case.steps}
        ratios = [f"{steps[name].ratio:.2f}" for name in GOALS]
        teacher = f"{steps[TAUGHT].ratio - steps['quantized'].ratio:+.2f}"
        row = [case.network, str(case.layers), str(case.batch), f"{steps['float'].median_ms:.0f}", *ratios, teacher]
        cells.append(row)
    return Rows(
        headings=("network", "layers", "batch", "float, ms", *(f"{name}, x float" for name in GOALS), "teacher"),
        cells=cells,
    )


def where(report: StepGrowthReport) -> str:
    """Return a line on the measurement and the machine."""
    machine = machine_line(report.environment, report.threads, report.torch, report.load)
    return f"images of {report.size}x{report.size}; {machine}"


if __name__ == "__main__":
    typer.run(main)
