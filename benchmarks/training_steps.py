"""One optimizer step of a network on a batch of noise, float or quantized, and the shared parts of its two benchmarks.

The benchmarks are `step_time` and `step_growth`; they share options and the preparation of a measurement.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy.config import Placement, QuantConfig
from qil_deploy.files import ensure_writable
from qil_deploy.integers import freeze
from qil_deploy.network import calibrate, prepare
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import compile_quantizers
from qil_deploy.runtime_tests.environment import Environment
from qil_deploy.training import distillation_loss
from qil_deploy.training.freed_memory import keep_freed_memory
from qil_deploy.training.models import build_model, memory_format_for
from qil_deploy.training.optimizers import make_optimizers
from qil_deploy.training.recipe_sections import OptimizerSection

CLASSES = 10
BITS = 4

Step = Callable[[], None]

Folder = Annotated[Path, typer.Option(help="Folder for the report.")]
Size = Annotated[int, typer.Option(help="Height and width of the images.", min=8)]
Threads = Annotated[int, typer.Option(help="Number of torch threads.", min=1)]
Repeats = Annotated[int, typer.Option(help="Measured steps of each model.", min=2)]
Warmup = Annotated[int, typer.Option(help="Uncounted steps of each model before measuring.", min=1)]
Seed = Annotated[int, typer.Option(help="Seed of the weights, the images and the order of the models.")]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The way a network is trained; a `placement` of None means float."""

    placement: Placement | None
    train_gamma: bool = False
    compiled: bool = False
    frozen: bool = False


@dataclass(frozen=True, kw_only=True)
class Images:
    """One batch of noise.

    Attributes:
        x: float32 [N, 3, H, W], channels last.
        labels: int64 [N].
        preprocessing: preprocessing that produced `x`.
    """

    x: Tensor
    labels: Tensor
    preprocessing: Preprocessing


def images_of(*, batch: int, size: int, seed: int) -> Images:
    """Draw a batch of square images with labels."""
    generator = torch.Generator().manual_seed(seed)
    preprocessing = Preprocessing.from_statistics((3, size, size), mean=0.45, std=0.25)
    pixels = torch.randint(0, 256, (batch, 3, size, size), generator=generator, dtype=torch.uint8)
    x = torch.from_numpy(preprocessing.normalize(pixels.numpy())).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (batch,), generator=generator)
    return Images(x=x, labels=labels, preprocessing=preprocessing)


def float_model(network: str, *, seed: int) -> nn.Module:
    """Build a network with random weights."""
    torch.manual_seed(seed)
    model = build_model(network, {"in_channels": 3, "num_classes": CLASSES})
    return model.to(memory_format=memory_format_for(model))


def model_of(network: str, variant: Variant, images: Images, *, seed: int) -> nn.Module:
    """Return the network that a variant trains: float, prepared and calibrated, or frozen."""
    model = float_model(network, seed=seed)
    if variant.placement is None:
        return model
    config = QuantConfig(
        weight_bits=BITS, activation_bits=BITS, placement=variant.placement, train_gamma=variant.train_gamma
    )
    prepared = prepare(model, config, images.x, input_grid=images.preprocessing)
    calibrate(prepared, [images.x])
    return freeze(prepared) if variant.frozen else prepared


def step_of(model: nn.Module, x: Tensor, labels: Tensor, *, compiled: bool, teacher: nn.Module | None = None) -> Step:
    """Return a function that takes one optimizer step, with the quantizers of the process set as `compiled` says.

    With a teacher, which must be in evaluation mode, the step also computes the teacher's logits and learns from them.
    """
    # The rates are too small to change anything, so every step does the same work.
    section = OptimizerSection(epochs=1, learning_rate=1e-6, interval_learning_rate=1e-6)
    optimizers = make_optimizers(model.train(), section)

    def step() -> None:
        compile_quantizers(compiled)
        logits = model(x)
        if teacher is None:
            loss = F.cross_entropy(logits, labels)
        else:
            with torch.no_grad():
                answers = teacher(x)
            loss = distillation_loss(logits, answers, labels)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    return step


def begin(path: Path, threads: int) -> float | None:
    """Prepare a measurement on a number of threads; return the previous load of the machine, if known.

    The process keeps freed memory, as in `train`.

    Raises:
        OutputError: no report can be written to `path`.
    """
    ensure_writable(path)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    torch.set_num_threads(threads)
    keep_freed_memory()
    return load


def machine_line(environment: Environment, threads: int, torch_version: str, load: float | None) -> str:
    """Return a line on the machine: processor, threads, PyTorch, and the previous load if known."""
    before = "" if load is None else f", load {load:.1f} before"
    return f"{environment.cpu}, {threads} threads, torch {torch_version}{before}"
