"""Average precision of boxes at an overlap of one half, the mean over classes.

Detections of a class in all images are taken in the order of their scores. Each is right if a box of its class in its
image, not taken by a better one, overlaps it by an IoU of at least 0.5; it takes the one that it overlaps most. The
average precision is the area under precision over recall, the precision at each recall being the highest there or
beyond, as in PASCAL VOC since 2010.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qil_deploy.errors import DataError

from .boxes import BoxDecoder, Detections, box_ious
from .labels import COLUMNS

IOU: Final = 0.5


class AveragePrecision:
    """Counts detections; labels are boxes, float [N, most, 5], as `pad_boxes` makes them.

    Args:
        decoder: makes boxes of the outputs.
    """

    name = "AP at IoU 0.5"

    def __init__(self, decoder: BoxDecoder) -> None:
        self._decoder = decoder
        self._truths = np.zeros(decoder.classes, np.int64)
        self._scores: list[list[float]] = [[] for _ in range(decoder.classes)]
        self._right: list[list[bool]] = [[] for _ in range(decoder.classes)]

    def add(self, outputs: Mapping[str, NDArray[np.float32]], labels: NDArray[Any]) -> None:
        """Count the detections in some images.

        Raises:
            DataError: labels that are no boxes of these classes.
        """
        if labels.ndim != 3 or labels.shape[2] != COLUMNS or labels.dtype.kind not in "iuf":
            raise DataError(
                f"labels are {labels.dtype} of shape {list(labels.shape)}; boxes are numbers [N, most, {COLUMNS}]: "
                "left, top, right, bottom and class (pad_boxes makes them)."
            )
        if labels.size and labels[..., 4].max() >= self._decoder.classes:
            raise DataError(
                f"labels have the class {labels[..., 4].max():g}, but there are {self._decoder.classes} classes."
            )
        for found, truth in zip(self._decoder.decode(outputs), labels, strict=True):
            self.add_image(found, truth)

    def add_image(self, found: Detections, truth: NDArray[Any]) -> None:
        """Count the detections in one image against its boxes [K, 5]."""
        for cls in range(self._decoder.classes):
            boxes, chosen = truth[truth[:, 4] == cls, :4], found.classes == cls
            self._truths[cls] += len(boxes)
            free = np.ones(len(boxes), bool)
            for score, overlaps in zip(found.scores[chosen], box_ious(found.boxes[chosen], boxes), strict=True):
                candidates = np.where(free, overlaps, -1.0)
                best = int(candidates.argmax()) if len(boxes) else -1
                right = best >= 0 and bool(candidates[best] >= IOU)
                if right:
                    free[best] = False
                self._scores[cls].append(float(score))
                self._right[cls].append(right)

    def per_class(self) -> NDArray[np.float64]:
        """Return the average precision of every class, [classes]; NaN for a class without a box."""
        return np.array([self._of_class(cls) for cls in range(self._decoder.classes)])

    def _of_class(self, cls: int) -> float:
        if self._truths[cls] == 0:
            return float("nan")
        order = np.argsort(-np.array(self._scores[cls]), kind="stable")
        right = np.array(self._right[cls], bool)[order]
        hits = np.cumsum(right)
        precision = hits / np.arange(1, len(hits) + 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        return float((envelope * right).sum() / self._truths[cls])

    def value(self) -> float:
        """Return the mean over the classes that have boxes; 0 where none has."""
        found = self.per_class()
        found = found[~np.isnan(found)]
        return float(found.mean()) if found.size else 0.0
