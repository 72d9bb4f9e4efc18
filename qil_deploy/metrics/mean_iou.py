"""Mean intersection over union of the classes of pixels.

For a class, the pixels both labelled and predicted as it, over those that are either; the mean is over the classes
labelled or predicted anywhere. Pixels without a label (255) are not counted. The predicted class of a pixel is
its largest channel, the first of equals.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qil_deploy.errors import DataError

NO_LABEL: Final = 255


class MeanIoU:
    """Counts pixels; labels are integers [N, H, W], of the size of the map.

    Args:
        output: the map [N, classes, H, W].
    """

    name = "mean IoU"

    def __init__(self, output: str) -> None:
        self._output = output
        self._counts = np.zeros((0, 0), np.int64)

    def add(self, outputs: Mapping[str, NDArray[np.float32]], labels: NDArray[Any]) -> None:
        """Count the pixels of some images.

        Raises:
            DataError: labels of another size than the map, of another type than integers, or out of range.
        """
        scores = outputs[self._output]
        classes = scores.shape[1]
        if labels.dtype.kind not in "iu" or labels.shape != (len(scores), *scores.shape[2:]):
            raise DataError(
                f"labels are {labels.dtype} of shape {list(labels.shape)}; integers of shape "
                f"{[len(scores), *scores.shape[2:]]} belong to a map of shape {list(scores.shape)}."
            )
        known = labels != NO_LABEL
        if known.any() and not 0 <= labels[known].min() <= labels[known].max() < classes:
            raise DataError(
                f"labels run from {labels[known].min()} to {labels[known].max()}, but there are {classes} classes: "
                f"0..{classes - 1} are allowed, and {NO_LABEL} for pixels without a label."
            )
        pairs = classes * labels[known].astype(np.int64) + scores.argmax(axis=1)[known]
        counts = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
        self._counts = counts if not self._counts.size else self._counts + counts

    def per_class(self) -> NDArray[np.float64]:
        """Return the IoU of every class, [classes]; NaN for a class that occurs nowhere."""
        both = np.diag(self._counts)
        either = self._counts.sum(axis=0) + self._counts.sum(axis=1) - both
        return np.where(either > 0, both / np.maximum(either, 1), np.nan)

    def value(self) -> float:
        """Return the mean; 0 where no pixel has a label."""
        found = self.per_class()
        found = found[~np.isnan(found)]
        return float(found.mean()) if found.size else 0.0
