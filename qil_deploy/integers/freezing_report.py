"""Cost of freezing: accuracy and predictions of a prepared model and of the frozen one, on the same images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qil_deploy.accuracy import top1_percent
from qil_deploy.datasets import ImageSet
from qil_deploy.errors import DataError
from qil_deploy.network import INPUT_GRID, QuantizedModel, evaluation_mode, logits_of, unwrapped
from qil_deploy.preprocessing import Preprocessing

_BATCH_SIZE = 250


@dataclass(frozen=True, kw_only=True)
class FreezingReport:
    """Both models side by side; accuracies in percent.

    Attributes:
        data: name of the data set; its test images were used.
        images: how many.
        accuracy_before: of the prepared model, with fake quantization.
        accuracy_after: of the frozen model, with the arithmetic of the exported file.
        changed_predictions: how many images got another class.
    """

    data: str
    images: int
    accuracy_before: float
    accuracy_after: float
    changed_predictions: int

    def sentence(self) -> str:
        """Return a one-sentence summary."""
        return (
            f"Freezing changed {self.changed_predictions:,} of {self.images:,} predictions on {self.data}; accuracy "
            f"was {self.accuracy_before:.2f} % and is {self.accuracy_after:.2f} %."
        )


@torch.no_grad()
def predictions(model: nn.Module, images: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.int64]:
    """Return the class that a model in evaluation mode gives each image, int64 [N].

    Args:
        model: float, prepared or frozen; the mode of every module is then what it was. Of several outputs the first
            counts, as it does in files.
        images: uint8 [N, C, H, W].
        preprocessing: from images to the model's input.

    Raises:
        DataError: images of another type or shape than `preprocessing` says, a prepared or frozen model that is for
            other preprocessing, or one whose first output is no row of logits.
    """
    network = unwrapped(model)
    if isinstance(network, QuantizedModel) and network.meta[INPUT_GRID] != preprocessing:
        raise DataError(
            f"the model was prepared with {network.meta[INPUT_GRID]}, but the images come by {preprocessing}."
        )
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    batches = (images[start : start + _BATCH_SIZE] for start in range(0, len(images), _BATCH_SIZE))
    with evaluation_mode(model):
        classes = [
            logits_of(model(torch.from_numpy(preprocessing.normalize(batch)).to(device))).argmax(1).cpu().numpy()
            for batch in batches
        ]
    return np.concatenate(classes) if classes else np.zeros(0, np.int64)


def compare_freezing(
    prepared: nn.Module, frozen: nn.Module, data: str, images: ImageSet, preprocessing: Preprocessing
) -> FreezingReport:
    """Run both models on the images of a data set called `data`.

    Raises:
        DataError: no images, unsuitable ones, or models whose first output is no row of logits.
        UnsupportedModelError: the prepared model was never calibrated.
    """
    if len(images) == 0:
        raise DataError(f"the cost of freezing cannot be measured on {data}: it has no images.")
    before, after = (predictions(model, images.images, preprocessing) for model in (prepared, frozen))
    return FreezingReport(
        data=data,
        images=len(images),
        accuracy_before=top1_percent(int((before == images.labels).sum()), len(images)),
        accuracy_after=top1_percent(int((after == images.labels).sum()), len(images)),
        changed_predictions=int((before != after).sum()),
    )
