"""The parts that all rows of `equal_epochs` share: a network, the images, and the float network they start from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy.accuracy import top1_percent
from qil_deploy.checkpoint import CheckpointInfo, load_tensors, read_checkpoint, save_checkpoint
from qil_deploy.config import QuantConfig
from qil_deploy.datasets import ImageSet, Split, load_images, preprocessing_for, resize_images
from qil_deploy.integers import predictions
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.training.data import ArrayBatches
from qil_deploy.training.models import build_model, memory_format_for
from qil_deploy.training.optimizers import make_optimizers
from qil_deploy.training.recipe_sections import OptimizerSection
from row_state import Reached, forget, holds_state, keep, take_up
from side_by_side import Images, Learner, Order, run_epoch

DATA = "fashion-mnist"
BATCH = 128
_TEACHER_BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class Task:
    """A network, and the Fashion-MNIST images that it is trained on.

    Attributes:
        name: name of its table on a page, and of its folder.
        network: name in `training.models.MODELS`.
        arguments: arguments of its builder, in addition to channels and classes.
        side: height and width to which images are enlarged; None: their own size.
        images: number of training images, from the first on; None: all.
    """

    name: str
    network: str
    arguments: dict[str, int] = field(default_factory=dict)
    side: int | None = None
    images: int | None = None

    def load(self, split: Split) -> ImageSet:
        """Return the images of a split; the test split is always complete."""
        found = load_images(DATA, split)
        if split == "train" and self.images is not None:
            found = found.first(self.images)
        if self.side is None:
            return found
        return replace(found, images=resize_images(found.images, (found.images.shape[1], self.side, self.side)))

    def model_arguments(self, classes: int) -> dict[str, int]:
        """Return all arguments of the builder."""
        return {"in_channels": 1, "num_classes": classes, **self.arguments}

    def build(self, classes: int) -> nn.Module:
        """Build the network without dropout, whose random numbers networks trained side by side would share."""
        model = build_model(self.network, self.model_arguments(classes))
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return model


RESNET20 = Task(name="equal_epochs", network="resnet20")
DEPTHWISE = Task(name="depthwise", network="mobilenet_v2", arguments={"width": 8}, side=64, images=10_000)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Task, data, device and epochs that all rows share; epochs of the float network and of each following row."""

    task: Task
    device: torch.device
    train: ImageSet
    test: ImageSet
    preprocessing: Preprocessing
    images: Images
    float_epochs: int
    epochs: int

    @classmethod
    def of(cls, task: Task, *, float_epochs: int, epochs: int, device: torch.device) -> Bench:
        """Load the images of a task."""
        train, test = task.load("train"), task.load("test")
        preprocessing = preprocessing_for(DATA, train)
        return cls(
            task=task,
            device=device,
            train=train,
            test=test,
            preprocessing=preprocessing,
            images=Images.of(train, preprocessing, device),
            float_epochs=float_epochs,
            epochs=epochs,
        )

    @property
    def keeps_epochs(self) -> bool:
        """Whether networks are kept after every epoch: on a processor, where it takes minutes."""
        return self.device.type == "cpu"

    def info(self, kind: Any, config: QuantConfig | None, **metrics: float) -> CheckpointInfo:  # noqa: ANN401 - Kind
        """Return the metadata of a checkpoint."""
        return CheckpointInfo(
            kind=kind,
            model_name=self.task.network,
            model_arguments=self.task.model_arguments(len(self.test.class_names)),
            config=config,
            preprocessing=self.preprocessing,
            data=DATA,
            class_names=self.test.class_names,
            metrics=metrics,
        )

    def accuracy(self, model: nn.Module) -> float:
        """Return the top-1 accuracy on the test images, in percent."""
        right = int((predictions(model, self.test.images, self.preprocessing) == self.test.labels).sum())
        return top1_percent(right, len(self.test))

    def order(self, epochs: int, seed: int) -> Order:
        """Draw the batches of a phase."""
        batches = ArrayBatches(self.train, self.preprocessing, batch_size=BATCH, flip=True, shift=0, seed=seed)
        return Order.of(batches, epochs, self.device)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained float network, and its logits [2N, classes]: of the images, then of the mirrored images."""

    model: nn.Module
    logits: Tensor


def train_float(bench: Bench, seeds: Sequence[int], out: Path, say: Callable[[str], None]) -> dict[int, Teacher]:
    """Train, or read, the float network of each seed."""
    section = OptimizerSection(epochs=bench.float_epochs, learning_rate=0.1, weight_decay=5e-4)
    learners = {}
    teachers = {}
    folders = {seed: unfinished_folder(out, f"float_{seed}") for seed in seeds}
    for seed in seeds:
        torch.manual_seed(seed)
        model = bench.task.build(len(bench.test.class_names))
        model.to(memory_format=memory_format_for(model)).to(bench.device)
        path = out / f"float_{seed}.safetensors"
        if path.exists():
            load_tensors(model, read_checkpoint(path)[1], str(path))
            teachers[seed] = teacher_of(model, bench.images)
            continue
        optimizers = make_optimizers(model, section)
        order = bench.order(section.epochs, seed * 1000)
        learners[seed] = Learner(model, optimizers, section, bench.images, order, label_loss)
        if bench.keeps_epochs and holds_state(folders[seed]):
            take_up(folders[seed], 0, 0, learners[seed])
        learners[seed].record()
    while training := {seed: learner for seed, learner in learners.items() if learner.done < learner.epochs}:
        began = time.perf_counter()
        run_epoch(list(training.values()))
        losses = [learner.end_epoch() for learner in training.values()]
        for seed, learner in training.items() if bench.keeps_epochs else ():
            keep(folders[seed], 0, learner, Reached())
        shown = [
            f"seed {seed}: {loss:.3f} in epoch {learners[seed].done}"
            for seed, loss in zip(training, losses, strict=True)
        ]
        say(f"float, {', '.join(shown)}; {time.perf_counter() - began:.1f} s")
    for seed, learner in learners.items():
        learner.model.eval()
        teachers[seed] = teacher_of(learner.model, bench.images)
        accuracy = bench.accuracy(learner.model)
        save_checkpoint(out / f"float_{seed}.safetensors", bench.info("float", None, accuracy=accuracy), learner.model)
        forget(folders[seed])
        say(f"float, seed {seed}: {accuracy:.2f} %")
    return teachers


def unfinished_folder(out: Path, name: str) -> Path:
    """Return where a network that is not finished is kept, in the folder of a table."""
    return out / "unfinished" / name.replace(" ", "_")


def label_loss(logits: Tensor, labels: Tensor, _numbers: Tensor) -> Tensor:
    """Return the cross-entropy with the labels."""
    return F.cross_entropy(logits, labels)


@torch.no_grad()
def teacher_of(model: nn.Module, images: Images) -> Teacher:
    """Compute a network's logits for every training image, original and mirrored."""
    model.eval()
    parts = [
        model(x.flip(3) if mirrored else x) for mirrored in (False, True) for x in images.inputs.split(_TEACHER_BATCH)
    ]
    return Teacher(model=model, logits=torch.cat(parts))
