"""Top-1 accuracy: the share of images whose largest logit is that of their label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qil_deploy.accuracy import predicted_classes, top1_fraction


class Top1:
    """Counts images that are classified correctly; labels are integers [N].

    Args:
        output: the row of logits.
    """

    name = "top-1"

    def __init__(self, output: str) -> None:
        self._output = output
        self._images = self._right = 0

    def add(self, outputs: Mapping[str, NDArray[np.float32]], labels: NDArray[Any]) -> None:
        """Count some images."""
        self._images += len(labels)
        self._right += int((predicted_classes(outputs[self._output]) == labels).sum())

    def value(self) -> float:
        """Return the share, of one image at least."""
        return top1_fraction(self._right, self._images)
