"""What freezing costs, measured on digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from qil_deploy.calibration import calibrate
from qil_deploy.datasets import ImageSet, load_images
from qil_deploy.freezing import freeze
from qil_deploy.freezing_report import FreezingReport, compare_freezing, predictions

if TYPE_CHECKING:
    from .conftest import Digits


def test_both_models_see_the_same_images_and_changes_are_counted(digits: Digits) -> None:
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
    assert 0 < report.changed_predictions < len(data) / 10
    assert f"changed {report.changed_predictions} of 360 predictions on digits; accuracy was" in report.sentence()


def test_no_images_no_predictions(digits: Digits) -> None:
    empty = ImageSet(
        images=np.zeros((0, *digits.preprocessing.shape), np.uint8), labels=np.zeros(0, np.int64), class_names=("a",)
    )
    assert predictions(digits.network, empty.images, digits.preprocessing).shape == (0,)
