"""Logits of each backend counted while batches go by, and the few images that are kept to be run again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from qil_deploy.accuracy import predicted_classes, top1_fraction

_KEPT: Final = 4


@dataclass(frozen=True, kw_only=True)
class BackendResult:
    """One backend against the reference, over all images.

    Attributes:
        name: "ONNX Runtime (LEVEL)" or the name the caller gave.
        must_equal: whether a difference makes the verification fail.
        accuracy: top-1, a fraction in [0, 1].
        differing_logits: how many of images x classes logits are not equal.
        changed_predictions: how many images get another class.
        largest_difference: largest absolute difference of two finite logits.
        not_finite: how many logits are NaN or infinite.
    """

    name: str
    must_equal: bool
    accuracy: float
    differing_logits: int
    changed_predictions: int
    largest_difference: float
    not_finite: int


class LogitCounts:
    """Running counts of one backend against the reference."""

    def __init__(self) -> None:
        self.images = 0
        self.correct = 0
        self.differing = 0
        self.changed = 0
        self.largest = 0.0
        self.not_finite = 0

    def add(self, logits: NDArray[np.float32], expected: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        """Count one batch."""
        predictions = predicted_classes(logits)
        finite = np.isfinite(logits)
        both = finite & np.isfinite(expected)
        distances = np.abs(logits[both].astype(np.float64) - expected[both].astype(np.float64))
        self.images += len(labels)
        self.correct += int((predictions == labels).sum())
        self.differing += int((logits != expected).sum())  # NaN differs from everything, itself included
        self.changed += int((predictions != predicted_classes(expected)).sum())
        self.largest = max(self.largest, float(distances.max(initial=0.0)))
        self.not_finite += int((~finite).sum())

    def result(self, name: str, must_equal: bool) -> BackendResult:
        """Return the counts of all batches, of which there was at least one."""
        return BackendResult(
            name=name,
            must_equal=must_equal,
            accuracy=top1_fraction(self.correct, self.images),
            differing_logits=self.differing,
            changed_predictions=self.changed,
            largest_difference=self.largest,
            not_finite=self.not_finite,
        )


class DifferingImages:
    """The first images of which two backends have different logits; until there is one, the first images of all.

    Attributes:
        pair: the names of the two.
        differ: whether any logit differs.
    """

    def __init__(self, pair: tuple[str, str]) -> None:
        self.pair = pair
        self.differ = False
        self._kept: list[tuple[int, NDArray[np.uint8], dict[str, NDArray[np.float32]]]] = []

    def add(self, logits: Mapping[str, NDArray[np.float32]], images: NDArray[np.uint8], start: int) -> None:
        """Keep what is wanted of a batch whose first image has the index `start`."""
        first, second = (logits[name] for name in self.pair)
        chosen = np.flatnonzero((first != second).any(axis=1))
        if chosen.size and not self.differ:
            self.differ, self._kept = True, []
        if not self.differ:
            chosen = np.arange(len(images))
        for index in chosen[: _KEPT - len(self._kept)].tolist():
            rows = {name: logits[name][index].copy() for name in self.pair}
            self._kept.append((start + index, images[index].copy(), rows))

    def indices(self) -> tuple[int, ...]:
        """Return where in the data set the images are."""
        return tuple(index for index, _, _ in self._kept)

    def images(self) -> NDArray[np.uint8]:
        """Return the images, uint8 [N, C, H, W]."""
        return np.stack([image for _, image, _ in self._kept])

    def logits(self, name: str) -> NDArray[np.float32]:
        """Return what one of the two made of the images, [N, classes]."""
        return np.stack([rows[name] for _, _, rows in self._kept])
