"""Common parts of tests of training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from torch import nn

from qil_deploy.accuracy import top1_percent
from qil_deploy.datasets import ImageSet
from qil_deploy.integers.freezing_report import predictions
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.training.fit import EpochMetrics, StepMetrics
from qil_deploy.training.phase_record import PhaseRecord
from qil_deploy.training.recipe import Recipe
from qil_deploy.training.run import Settings
from qil_deploy.training.run_state import Position
from qil_deploy.training.train import train


def accuracy(model: nn.Module, data: ImageSet, preprocessing: Preprocessing) -> float:
    """Top-1 accuracy of a model in evaluation mode, in percent."""
    right = (predictions(model, data.images, preprocessing) == data.labels).sum()
    return top1_percent(int(right), len(data))


@dataclass
class MemoryRecord:
    """Records a phase's reports in memory only."""

    evaluate: Callable[[nn.Module], float]
    save_seconds: float = math.inf
    steps: list[StepMetrics] = field(default_factory=list)
    epochs: list[EpochMetrics] = field(default_factory=list)

    def on_step(self, metrics: StepMetrics) -> None:
        self.steps.append(metrics)

    def on_epoch(self, metrics: EpochMetrics, _position: Position) -> None:
        self.epochs.append(metrics)

    def save(self, position: Position) -> None:
        pass


class KilledError(Exception):
    """Ends training as a kill would: nothing runs after it."""


def train_until_killed(recipe: Recipe, folder: Path, step: int) -> None:
    """Start a run that saves its state after every step, and end it just before a given save, counted from 1."""
    seen, true_save = 0, PhaseRecord.save

    def killing(self: PhaseRecord, position: Position) -> None:
        nonlocal seen
        seen += 1
        if seen == step:
            raise KilledError
        true_save(self, position)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PhaseRecord, "save", killing)
        with pytest.raises(KilledError):
            train(recipe, folder, settings=Settings(save_minutes=0))
