"""Cost of freezing, measured on digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from qil_deploy.datasets import ImageSet, load_images
from qil_deploy.integers.freeze_model import freeze
from qil_deploy.integers.freezing_report import FreezingReport, compare_freezing, predictions
from qil_deploy.network.calibration import calibrate
from qil_deploy.preprocessing import Preprocessing

if TYPE_CHECKING:
    from tests.trained_digits import Digits


class Always(nn.Module):
    """Predicts one class for every image, but another for those whose first pixel is dark."""

    def __init__(self, usual: int, dark: int) -> None:
        super().__init__()
        self.answers = nn.Parameter(torch.eye(3)[[dark, usual]])

    def forward(self, x: Tensor) -> Tensor:
        return self.answers[(x[:, 0, 0, 0] >= 0).long()]


def test_accuracies_and_changed_predictions_are_counted() -> None:
    pixels = np.array([0, 0, 200, 200, 200], np.uint8)
    data = ImageSet(
        images=np.tile(pixels[:, None, None, None], (1, 1, 2, 2)),
        labels=np.array([2, 0, 1, 1, 0], np.int64),
        class_names=("a", "b", "c"),
    )
    preprocessing = Preprocessing(channels=1, height=2, width=2, scale=0.01, zero_point=128)
    report = compare_freezing(Always(1, 2), Always(1, 0), "five images", data, preprocessing)
    assert report == FreezingReport(
        data="five images", images=5, accuracy_before=60.0, accuracy_after=60.0, changed_predictions=2
    )
    assert report.sentence() == (
        "Freezing changed 2 of 5 predictions on five images; accuracy was 60.00 % and is 60.00 %."
    )


def test_both_models_see_the_same_images(digits: Digits) -> None:
    prepared = digits.prepare(2)
    calibrate(prepared, digits.batches())
    data = load_images("digits", "test")
    frozen = freeze(prepared)
    report = compare_freezing(prepared, frozen, "digits", data, digits.preprocessing)
    with torch.no_grad():
        x = torch.from_numpy(digits.preprocessing.normalize(data.images))
        before, after = (model.eval()(x).argmax(1).numpy() for model in (prepared, frozen))
    assert report == FreezingReport(
        data="digits",
        images=len(data),
        accuracy_before=100 * float(np.mean(before == data.labels)),
        accuracy_after=100 * float(np.mean(after == data.labels)),
        changed_predictions=int(np.sum(before != after)),
    )
    assert report.changed_predictions < len(data) / 10


def test_no_images_no_predictions(digits: Digits) -> None:
    empty = ImageSet(
        images=np.zeros((0, *digits.preprocessing.shape), np.uint8), labels=np.zeros(0, np.int64), class_names=("a",)
    )
    assert predictions(digits.network, empty.images, digits.preprocessing).shape == (0,)
