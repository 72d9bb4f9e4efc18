"""Train small networks for a few steps each, as one of any number of processes; the first writes the results.

    torchrun --nproc-per-node N train_in_process.py KIND... FOLDER

In float64: what is left of a difference between one process and many is the order of sums, far from every rounding.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

from qil_deploy.config import QuantConfig
from qil_deploy.datasets import load_images, preprocessing_for
from qil_deploy.integers.freeze_model import freeze
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.preparation import prepare
from qil_deploy.terminal.console import Console
from qil_deploy.terminal.progress import Progress
from qil_deploy.training.data.memory_batches import ArrayBatches, Batches, Share
from qil_deploy.training.distillation_teacher import DistillationLoss
from qil_deploy.training.fit import EpochMetrics, Loss, Phase, StepMetrics, cross_entropy, loss_of, train_epochs
from qil_deploy.training.models.build import build_model
from qil_deploy.training.optimizers import make_optimizers
from qil_deploy.training.recipe import recipe_from_dict
from qil_deploy.training.recipe_sections import OptimizerSection
from qil_deploy.training.run import Run, Settings
from qil_deploy.training.run_state import Learner, Position

SECTION = OptimizerSection(epochs=2, batch_size=288, learning_rate=0.05)


class DoubleBatches(ArrayBatches):
    """The same batches in float64."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (input float64, labels)."""
        for x, labels in super().epoch(epoch, start):
            yield x.double(), labels


class LossRecord:
    """Records the loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.save_seconds = math.inf

    def evaluate(self, _model: nn.Module) -> float:
        return 0.0

    def on_step(self, metrics: StepMetrics) -> None:
        self.losses.append(metrics.loss)

    def on_epoch(self, metrics: EpochMetrics, position: Position) -> None:
        pass

    def save(self, position: Position) -> None:
        pass


def network(kind: str, calibration: Tensor) -> nn.Module:
    """Return the network to train: `float`, `distilled` (also a float one), `quantized` or `frozen`."""
    torch.manual_seed(0)
    model = build_model("resnet8", {"in_channels": 1, "num_classes": 10, "width": 4})
    if kind in ("float", "distilled"):
        return model.double()
    config = QuantConfig(weight_bits=3, activation_bits=3, train_gamma=True)
    grid = preprocessing_for("digits", load_images("digits", "train"))
    prepared = prepare(model, config, calibration.float(), input_grid=grid)
    calibrate(prepared, [calibration.float()])
    prepared.double()
    return freeze(prepared) if kind == "frozen" else prepared


def taught(accelerator: Accelerator, progress: Progress, batches: Batches) -> Loss:
    """Return the loss of a phase whose teacher is a float network, with a table of its logits."""
    stage = {"epochs": SECTION.epochs, "batch_size": SECTION.batch_size, "weight_bits": 3, "activation_bits": 3}
    recipe = recipe_from_dict(
        {
            "name": "taught",
            "data": "digits",
            "model": {"name": "resnet8", "width": 4},
            "augmentation": {"flip": True},
            "float_training": {"epochs": 1},
            "distillation": {},
            "stages": [stage],
        },
        "taught",
    )
    run = Run(recipe, Path("nowhere"), progress, accelerator, resume=False, settings=Settings())
    loss = loss_of(run, recipe.stages[0], batches)
    assert isinstance(loss, DistillationLoss)
    assert run.distillation_teacher is not None
    looked_up = loss.teacher_logits
    assert looked_up != run.distillation_teacher.logits_of_batch
    # How float32 rounds the softmax of a row may depend on the rows beside it.
    return replace(loss, teacher_logits=lambda x, position: looked_up(x, position).double())


def train_kind(kind: str, accelerator: Accelerator, path: Path) -> None:
    """Train a network, and write weights, buffers and the loss of every step."""
    data = load_images("digits", "train")

    def batches(share: Share) -> DoubleBatches:
        return DoubleBatches(
            data,
            preprocessing_for("digits", data),
            batch_size=288,
            flip=True,
            shift=0 if kind == "distilled" else 1,
            seed=0,
            share=share,
        )

    model = network(kind, next(batches(Share()).epoch(0))[0])
    record = LossRecord()
    learner = Learner(model=model, optimizers=make_optimizers(model, SECTION))
    own = batches(Share(rank=accelerator.process_index, of=accelerator.num_processes))
    progress = Progress(console=Console(file=io.StringIO()))
    loss = taught(accelerator, progress, own) if kind == "distilled" else cross_entropy
    train_epochs(
        Phase(name=kind, batches=own, section=SECTION, seed=0, loss=loss),
        learner,
        record,
        position=Position(),
        accelerator=accelerator,
        progress=progress,
    )
    if accelerator.is_main_process:
        tensors = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
        losses = torch.tensor(record.losses, dtype=torch.float64)
        save_file(tensors | {"losses": losses}, path)


def main(kinds: list[str], folder: Path) -> None:
    """Train networks one after another."""
    accelerator = Accelerator(cpu=True)
    for kind in kinds:
        train_kind(kind, accelerator, folder / f"{kind}.safetensors")
    accelerator.wait_for_everyone()
    accelerator.end_training()  # a process that leaves its group open may abort when it exits


if __name__ == "__main__":
    main(sys.argv[1:-1], Path(sys.argv[-1]))
