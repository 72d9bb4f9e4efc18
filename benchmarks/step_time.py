"""Time one optimizer step of a network in training, quantized and float, interleaved in one run.

    python benchmarks/step_time.py --out runs/benchmarks

A step consists of forward pass, cross-entropy, backward pass, and the update of the weights (SGD) and interval
parameters (Adam), as in the training loop. Every model is built and warmed up before the first measurement. Then all
models take one step per round, in a new random order, so that a busy moment affects all of them. A ratio compares a
model with the float network in the same round. The script writes the report `OUT/step_time.json`, from which
`write_tables.py` generates the table of docs/benchmarks.md. If Brevitas is not installed, it is listed with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from exporters import Skipped, goal_rows, skipped_lines
from goals import Verdict
from peers import use_brevitas_layers
from qil_deploy.config import Placement
from qil_deploy.errors import ConfigError
from qil_deploy.runtime_tests import write_report
from qil_deploy.runtime_tests.bench import Clock
from qil_deploy.runtime_tests.environment import Environment, describe_environment
from qil_deploy.terminal import Console, Progress
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

_RESAMPLES = 2000
_MILLISECOND = 1e6

PLACEMENTS: tuple[Placement, ...] = ("paper", "integer")

VARIANTS: dict[str, Variant] = {
    "float": Variant(placement=None),
    **{
        f"{placement}{'_gamma' if gamma else ''}{'_compiled' if compiled else ''}": Variant(
            placement=placement, train_gamma=gamma, compiled=compiled
        )
        for placement in PLACEMENTS
        for gamma in (False, True)
        for compiled in (False, True)
    },
    "frozen": Variant(placement="integer", frozen=True),
}

# Bounds on a step, in steps of the float network.
COMPILED_GOAL, GAMMA_GOAL = 1.2, 1.4
GOALS: dict[str, float] = {
    f"{placement}{suffix}": bound
    for placement in PLACEMENTS
    for suffix, bound in (("_compiled", COMPILED_GOAL), ("_gamma_compiled", GAMMA_GOAL), ("", 1.9))
}


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Timing of one model.

    Attributes:
        model: name in `VARIANTS`, or "brevitas".
        median_ms, iqr_ms: median of its steps, and 75th minus 25th percentile.
        ratio: median ratio of its time to the float network's in the same round.
        ratio_low, ratio_high: 95 % of the medians of resampled rounds lie between these.
        samples_ns: every measured step, in order of measurement.
    """

    model: str
    median_ms: float
    iqr_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    samples_ns: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class StepTimeReport:
    """Results for one network, with its name in `training.models.MODELS`.

    Attributes:
        schema: `SCHEMA`.
        batch, size: images per step, their height and width.
        threads: number of torch threads.
        load: load average of the machine over the minute before; None if unknown.
        torch: version of torch.
    """

    SCHEMA: ClassVar[str] = "qil_deploy.benchmarks.step_time/1"

    schema: str
    network: str
    batch: int
    size: int
    threads: int
    seed: int
    load: float | None
    steps: tuple[StepTime, ...]
    verdicts: tuple[Verdict, ...]
    skipped: tuple[Skipped, ...]
    torch: str
    environment: Environment


def main(
    network: Annotated[str, typer.Option(help="Name in training.models.MODELS.")] = "resnet18",
    out: Folder = Path("runs/benchmarks"),
    batch: Annotated[int, typer.Option(help="Images per step.", min=2)] = 32,
    size: Size = 64,
    threads: Threads = 2,
    repeats: Repeats = 30,
    warmup: Warmup = 3,
    seed: Seed = 0,
) -> None:
    """Time one optimizer step of a network: float, quantized in each way, and with Brevitas."""
    console = Console()
    path = out / "step_time.json"
    load = begin(path, threads)
    steps, skipped = make_steps(network, batch=batch, size=size, seed=seed)
    with Progress(console=console, transient=True) as progress:
        samples = measure(steps, repeats=repeats, warmup=warmup, seed=seed, progress=progress)
    times = summarize(samples, seed=seed)
    report = StepTimeReport(
        schema=StepTimeReport.SCHEMA,
        network=network,
        batch=batch,
        size=size,
        threads=threads,
        seed=seed,
        load=load,
        steps=tuple(times),
        verdicts=tuple(judge(times)),
        skipped=tuple(skipped),
        torch=torch.__version__,
        environment=describe_environment(),
    )
    write_report(path, report)
    console.print(console_table(where(report), step_rows(report)))
    for line in skipped_lines(skipped):
        console.print(line)
    console.print(console_table("goals", goal_rows(report.verdicts)))


def make_steps(network: str, *, batch: int, size: int, seed: int) -> tuple[dict[str, Step], list[Skipped]]:
    """Return functions that take one step on a fixed batch, by model name, and the missing models."""
    images = images_of(batch=batch, size=size, seed=seed)
    x, labels = images.x, images.labels
    steps = {
        name: step_of(model_of(network, variant, images, seed=seed), x, labels, compiled=variant.compiled)
        for name, variant in VARIANTS.items()
    }
    skipped = []
    try:
        model = float_model(network, seed=seed)
        use_brevitas_layers(model, collect_stats_steps=1)
    except ImportError as error:
        skipped.append(Skipped(model="brevitas", reason=f"not installed ({error})"))
    else:
        steps["brevitas"] = step_of(model.to(memory_format=torch.channels_last), x, labels, compiled=False)
    return steps, skipped


def measure(
    steps: dict[str, Step],
    *,
    repeats: int,
    warmup: int,
    seed: int,
    progress: Progress,
    clock: Clock = time.perf_counter_ns,
) -> dict[str, list[int]]:
    """Run `warmup + repeats` rounds of steps; return the nanoseconds of the last `repeats`, by model name."""
    generator = np.random.default_rng(seed)
    names = list(steps)
    samples: dict[str, list[int]] = {name: [] for name in names}
    task = progress.add_task("steps", total=(warmup + repeats) * len(names))
    for round_number in range(warmup + repeats):
        for index in generator.permutation(len(names)):
            start = clock()
            steps[names[index]]()
            elapsed = clock() - start
            if round_number >= warmup:
                samples[names[index]].append(elapsed)
            progress.update(task, advance=1, description=names[index])
    return samples


def summarize(samples: dict[str, list[int]], *, seed: int) -> list[StepTime]:
    """Return medians, spreads and ratios to the model named "float".

    Raises:
        ConfigError: the clock resolution is too low for the float network.
    """
    base = np.array(samples["float"], dtype=np.float64)
    if base.min() <= 0:
        raise ConfigError(
            "the clock did not advance while the float network took a step; measure with a higher-resolution clock."
        )
    generator = np.random.default_rng(seed)
    rounds = generator.integers(0, len(base), (_RESAMPLES, len(base)))
    times = []
    for name, runs in samples.items():
        values = np.array(runs, dtype=np.float64)
        ratios: NDArray[np.float64] = values / base
        quarter, median, three_quarters = np.percentile(values, [25, 50, 75]) / _MILLISECOND
        low, high = np.percentile(np.median(ratios[rounds], axis=1), [2.5, 97.5])
        times.append(
            StepTime(
                model=name,
                median_ms=float(median),
                iqr_ms=float(three_quarters - quarter),
                ratio=float(np.median(ratios)),
                ratio_low=float(low),
                ratio_high=float(high),
                samples_ns=tuple(runs),
            )
        )
    return times


def judge(times: Sequence[StepTime]) -> list[Verdict]:
    """Return a verdict for every goal whose model was measured."""
    measured = {entry.model: entry.ratio for entry in times}
    return [
        Verdict(
            goal=f"{name}: at most {bound:g} of a float step",
            bound=bound,
            measured=measured[name],
            met=measured[name] <= bound,
        )
        for name, bound in GOALS.items()
        if name in measured
    ]


def step_rows(report: StepTimeReport) -> Rows:
    """Return one row per model: median, spread, and ratio to float with the interval of its resampled medians."""
    cells = [
        [
            entry.model,
            f"{entry.median_ms:.0f}",
            f"{entry.iqr_ms:.0f}",
            f"{entry.ratio:.2f}",
            f"{entry.ratio_low:.2f} - {entry.ratio_high:.2f}",
        ]
        for entry in report.steps
    ]
    return Rows(headings=("model", "ms", "spread", "x float", "95 %"), cells=cells)


def where(report: StepTimeReport) -> str:
    """Return a line on the measurement and the machine."""
    return (
        f"{report.network}, {report.batch} images of {report.size}x{report.size}; "
        f"{machine_line(report.environment, report.threads, report.torch, report.load)}"
    )


if __name__ == "__main__":
    typer.run(main)
