"""What tests of training share."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from qil_deploy.accuracy import top1_percent
from qil_deploy.datasets import ImageSet
from qil_deploy.integers.freezing_report import predictions
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.training.recipe import Recipe
from qil_deploy.training.run import PhaseRecord, Settings
from qil_deploy.training.run_state import Position
from qil_deploy.training.train import train


def accuracy(model: nn.Module, data: ImageSet, preprocessing: Preprocessing) -> float:
    """Top-1 accuracy of a model in evaluation mode, in percent."""
    right = (predictions(model, data.images, preprocessing) == data.labels).sum()
    return top1_percent(int(right), len(data))


class KilledError(Exception):
    """Ends training as a kill would: nothing after it runs."""


def train_until_killed(recipe: Recipe, folder: Path, step: int) -> None:
    """Start a run that keeps every step, and end it just before it keeps the given one, counted from 1."""
    seen, true_save = 0, PhaseRecord.save

    def killing(self: PhaseRecord, position: Position) -> None:
        nonlocal seen
        seen += position.batch > 0
        if seen == step:
            raise KilledError
        true_save(self, position)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PhaseRecord, "save", killing)
        with pytest.raises(KilledError):
            train(recipe, folder, settings=Settings(save_minutes=0))
