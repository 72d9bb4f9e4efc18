"""The report of `bench --target` on an emulated target, and the algebra of its counts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from qil_deploy.runtime_tests.bench.report import Failure
from qil_deploy.runtime_tests.device_report import DeviceEnvironment
from qil_deploy.runtime_tests.reports import ModelFile

STEADY = 0.01
"""A larger spread of counts is remarked upon."""

Counts = tuple[tuple[int, ...], ...]
"""Instructions of each counted run, process by process."""


@dataclass(frozen=True, kw_only=True)
class ModelInstructions:
    """One model.

    Attributes:
        model: the file.
        instructions: of one inference, ONNX Runtime's call from Python included: median over all counted runs.
        spread: largest count minus smallest, as a share of the median.
        ratio: `instructions` over those of the first model that was counted.
        counts: every counted run.
    """

    model: ModelFile
    instructions: int
    spread: float
    ratio: float
    counts: Counts


@dataclass(frozen=True, kw_only=True)
class InstructionsReport:
    """Outcome of `count_instructions`. It contains no times.

    Attributes:
        schema: `SCHEMA`.
        target: the emulated target.
        batch: images per run.
        processes: how many ran each model.
        repeats, warmup: counted runs of each process, and runs before them.
        seed: of the inputs.
        models: those that were counted, in the order given.
        failures: models that could not be counted, or not to the end.
        warnings: what makes these figures doubtful, in sentences.
        interrupted: whether Ctrl-C ended it.
        environment: of the emulated Python; None if no model was counted to its end.
        kernels: the library of kernels that sessions registered; None for none.
    """

    SCHEMA: ClassVar[str] = "qil_deploy.instructions/1"

    schema: str
    target: str
    batch: int
    processes: int
    repeats: int
    warmup: int
    seed: int
    models: tuple[ModelInstructions, ...]
    failures: tuple[Failure, ...]
    warnings: tuple[str, ...]
    interrupted: bool
    environment: DeviceEnvironment | None
    kernels: str | None = None


def differences(marks: Sequence[int]) -> tuple[int, ...]:
    """Return the counts between the first mark and the second, the third and the fourth, and so on."""
    return tuple(end - begin for begin, end in zip(marks[::2], marks[1::2], strict=False))


def summarize(counts: Sequence[tuple[Path, Counts]]) -> tuple[ModelInstructions, ...]:
    """Return each model's instructions, and their ratio to the first one's."""
    medians = [round(statistics.median(run for runs in processes for run in runs)) for _, processes in counts]
    return tuple(
        ModelInstructions(
            model=ModelFile.of(path),
            instructions=median,
            spread=spread(processes),
            ratio=median / medians[0],
            counts=processes,
        )
        for (path, processes), median in zip(counts, medians, strict=True)
    )


def spread(counts: Counts) -> float:
    """Return the largest count minus the smallest, as a share of their median."""
    runs = [run for process in counts for run in process]
    return (max(runs) - min(runs)) / statistics.median(runs)


def unsteady(models: Sequence[ModelInstructions]) -> tuple[str, ...]:
    """Describe the models whose counts differ by more than `STEADY`."""
    return tuple(
        f"counts of {model.model.path} differ by {model.spread:.1%} from run to run; give it more --warmup."
        for model in models
        if model.spread > STEADY
    )
