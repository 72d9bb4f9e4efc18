"""What tests of training share."""

from __future__ import annotations

from torch import nn

from qil_deploy.datasets import ImageSet
from qil_deploy.freezing_report import predictions
from qil_deploy.preprocessing import Preprocessing


def accuracy(model: nn.Module, data: ImageSet, preprocessing: Preprocessing) -> float:
    """Top-1 accuracy of a model in evaluation mode, in percent."""
    return 100.0 * float((predictions(model, data.images, preprocessing) == data.labels).mean())
