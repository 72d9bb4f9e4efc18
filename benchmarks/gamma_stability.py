"""Compare the training of gamma and intervals in this project's parametrization with a direct one that others tried.

    python benchmarks/gamma_stability.py --out runs/benchmarks

Two copies of one ResNet-8 at 3 bits train on the digits, from the same intervals, on the same batches. One has the
parameters of decision 0009, trained by Adam at ten times the usual rate. The other has `c`, `d` and `gamma` as direct
parameters, trained by SGD with momentum like the weights, at 0.01 times their rate. A run has crashed when its loss or
a parameter is no longer finite, or when a `d` or `gamma` is no longer positive. The script writes the curves,
`OUT/gamma_stability.png`, and the report `OUT/gamma_stability.json`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy.config import QuantConfig
from qil_deploy.datasets import load_images, preprocessing_for
from qil_deploy.files import atomic_path, ensure_writable
from qil_deploy.network import calibrate, prepare
from qil_deploy.quantizers import ActivationQuantizer, IntervalQuantizer, WeightQuantizer, round_straight_through
from qil_deploy.runtime_tests import write_report
from qil_deploy.runtime_tests.environment import Environment, describe_environment
from qil_deploy.terminal import Console
from qil_deploy.training.models import build_model
from qil_deploy.training.optimizers import make_optimizers
from qil_deploy.training.recipe_sections import OptimizerSection
from tables import Rows, console_table

BITS = 3
BATCH = 32
WIDTH = 8
NAIVE_FACTOR = 0.01
OUR_FACTOR = 10.0


@dataclass(frozen=True, kw_only=True)
class LayerCurve:
    """Curve of one quantizer: `d` relative to its first value, and for weights gamma (empty for activations)."""

    name: str
    distance: tuple[float, ...]
    gamma: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class StabilityRun:
    """One run: its losses, its quantizers, and, if it crashed, the step and the reason."""

    name: str
    losses: tuple[float, ...]
    layers: tuple[LayerCurve, ...]
    crashed_at: int | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class StabilityReport:
    """Results of both runs; `learning_rate` is the rate of the weights."""

    SCHEMA: ClassVar[str] = "qil_deploy.benchmarks.gamma_stability/1"

    schema: str
    steps: int
    learning_rate: float
    seed: int
    runs: tuple[StabilityRun, ...]
    environment: Environment


class NaiveInterval(nn.Module):
    """QIL's quantizer with `c`, `d` and `gamma` as parameters and the gradients of autograd."""

    def __init__(self, quantizer: IntervalQuantizer) -> None:
        super().__init__()
        self.largest_code = quantizer.largest_code
        self.c = nn.Parameter(quantizer.center.detach().clone())
        self.distance = nn.Parameter(quantizer.distance.detach().clone())
        self.gamma = nn.Parameter(torch.ones(())) if isinstance(quantizer, WeightQuantizer) else None

    def forward(self, x: Tensor) -> Tensor:
        """Return values `code / q`, of the shape of `x`."""
        magnitude = x if self.gamma is None else x.abs()
        t = (0.5 * (magnitude - self.c) / self.distance + 0.5).clamp(0.0, 1.0)
        if self.gamma is not None:
            t = t.pow(self.gamma) * x.sign()
        return round_straight_through(t * self.largest_code) / self.largest_code


def main(
    out: Annotated[Path, typer.Option(help="Folder for the figure and the report.")] = Path("runs/benchmarks"),
    steps: Annotated[int, typer.Option(help="Optimizer steps of each run.", min=1)] = 400,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of the weights.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of the weights and batches.")] = 0,
) -> None:
    """Train both ways, report crashes, and draw the curves."""
    console = Console()
    path = out / "gamma_stability.json"
    ensure_writable(path)
    report = compare(steps=steps, learning_rate=learning_rate, seed=seed)
    write_report(path, report)
    draw(report, out / "gamma_stability.png")
    console.print(console_table("gamma and intervals trained two ways", stability_rows(report)))


def compare(*, steps: int, learning_rate: float, seed: int) -> StabilityReport:
    """Train both ways from the same start."""
    data = load_images("digits", "train")
    preprocessing = preprocessing_for("digits", data)
    images = torch.from_numpy(preprocessing.normalize(data.images))
    labels = torch.from_numpy(data.labels.astype(np.int64))
    torch.manual_seed(seed)
    network = build_model("resnet8", {"in_channels": 1, "num_classes": 10, "width": WIDTH})
    config = QuantConfig(weight_bits=BITS, activation_bits=BITS, train_gamma=True)
    ours: nn.Module = prepare(network, config, images[:1], input_grid=preprocessing)
    calibrate(ours, [images[:512]])
    naive = use_naive_intervals(copy.deepcopy(ours))

    section = OptimizerSection(epochs=1, learning_rate=learning_rate)
    our_rate = OUR_FACTOR * section.interval_learning_rate
    our_optimizers = make_optimizers(ours, section.model_copy(update={"interval_learning_rate": our_rate}))
    naive_optimizer = naive_sgd(naive, learning_rate)

    def next_batches() -> Callable[[], tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)

        def batch() -> tuple[Tensor, Tensor]:
            chosen = torch.randint(0, len(images), (BATCH,), generator=generator)
            return images[chosen], labels[chosen]

        return batch

    runs = (
        train(f"this project, {OUR_FACTOR:g} times its rate", ours, our_optimizers, next_batches(), steps),
        train(f"c, d, gamma by SGD, factor {NAIVE_FACTOR:g}", naive, [naive_optimizer], next_batches(), steps),
    )
    return StabilityReport(
        schema=StabilityReport.SCHEMA,
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
        runs=runs,
        environment=describe_environment(),
    )


def use_naive_intervals(model: nn.Module) -> nn.Module:
    """Replace every interval quantizer inside `model`; 8-bit ranges stay unchanged."""
    for name, child in list(model.named_children()):
        if isinstance(child, WeightQuantizer | ActivationQuantizer):
            setattr(model, name, NaiveInterval(child))
        else:
            use_naive_intervals(child)
    return model


def naive_sgd(model: nn.Module, learning_rate: float) -> torch.optim.SGD:
    """Return SGD with momentum for all parameters, with a small factor on the rate of scalars."""
    scalars = [parameter for parameter in model.parameters() if parameter.ndim == 0]
    rest = [parameter for parameter in model.parameters() if parameter.ndim > 0]
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": scalars, "lr": NAIVE_FACTOR * learning_rate}]
    return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, nesterov=True)


def train(
    name: str,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    next_batch: Callable[[], tuple[Tensor, Tensor]],
    steps: int,
) -> StabilityRun:
    """Train for `steps` steps, or until a crash."""
    model.train()
    kinds = (IntervalQuantizer, NaiveInterval)
    quantizers = {path: module for path, module in model.named_modules() if isinstance(module, kinds)}
    first = {path: float(quantizer.distance.detach()) for path, quantizer in quantizers.items()}
    losses: list[float] = []
    distances: dict[str, list[float]] = {path: [] for path in quantizers}
    gammas: dict[str, list[float]] = {path: [] for path in quantizers}
    reason = ""
    while len(losses) < steps and not reason:
        x, labels = next_batch()
        loss = F.cross_entropy(model(x), labels)
        model.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        reason = crash(model, float(loss.detach()), quantizers)
        losses.append(float(loss.detach()))
        for path, quantizer in quantizers.items():
            distances[path].append(float(quantizer.distance.detach()) / first[path])
            gamma = getattr(quantizer, "gamma", None)
            if gamma is not None:
                gammas[path].append(float(gamma.detach()))
    kept = len(losses) - bool(reason)  # JSON has no infinity: the crashing loss is reported as text, not stored
    layers = tuple(
        LayerCurve(name=path, distance=tuple(distances[path][:kept]), gamma=tuple(gammas[path][:kept]))
        for path in quantizers
    )
    return StabilityRun(
        name=name,
        losses=tuple(losses[:kept]),
        layers=layers,
        crashed_at=kept if reason else None,
        reason=reason,
    )


def crash(model: nn.Module, loss: float, quantizers: dict[str, IntervalQuantizer | NaiveInterval]) -> str:
    """Return what is wrong with a model after a step, or an empty text if training can continue."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    for name, parameter in model.named_parameters():
        if not bool(parameter.detach().isfinite().all()):
            return f"{name} is not finite"
    for path, quantizer in quantizers.items():
        for name in ("distance", "gamma"):
            value = getattr(quantizer, name, None)
            if value is not None and not float(value.detach()) > 0:
                return f"{name} of {path} is {float(value.detach()):.3g}"
    return ""


def stability_rows(report: StabilityReport) -> Rows:
    """Return one row per run: the span of gamma, the last losses, and how it ended."""
    cells = []
    for run in report.runs:
        gammas = [value for layer in run.layers for value in layer.gamma]
        span = f"{min(gammas):.2f} - {max(gammas):.2f}" if gammas else ""
        last = f"{np.mean(run.losses[-20:]):.3f}" if run.losses else ""
        end = f"step {len(run.losses)}" if run.crashed_at is None else f"crashed at step {run.crashed_at}: {run.reason}"
        cells.append([run.name, span, last, end])
    return Rows(headings=("parameters and training", "gamma", "last loss", "end"), cells=cells)


def draw(report: StabilityReport, path: Path) -> None:
    """Draw loss, gamma and intervals of each run, one column per run.

    Raises:
        OutputError: `path` cannot be written.
    """
    figure = Figure(figsize=(11.0, 8.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, len(report.runs), squeeze=False, sharex=True)
    for column, run in zip(axes.T, report.runs, strict=True):
        column[0].set_title(run.name if run.crashed_at is None else f"{run.name}\n{run.reason}, step {run.crashed_at}")
        column[0].plot(run.losses, color="#3b6ea5", linewidth=0.8)
        for layer in run.layers:
            column[1].plot(layer.gamma, linewidth=0.8)
            column[2].plot(layer.distance, linewidth=0.8)
        column[2].set_yscale("log")
        column[2].set_xlabel("step")
        for axis in column:
            if run.crashed_at is not None:
                axis.axvline(run.crashed_at, color="#b03030", linestyle="--")
    for axis, label in zip(axes[:, 0], ("loss", "gamma", "d / first d"), strict=True):
        axis.set_ylabel(label)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=120, metadata={"Software": None})


if __name__ == "__main__":
    typer.run(main)
