"""Running counts of each backend's outputs, and the few images that are kept to run again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qil_deploy.accuracy import predicted_classes
from qil_deploy.metrics import Metric

from .exported_model import ExportedModel, Outputs

_KEPT: Final = 4


@dataclass(frozen=True, kw_only=True)
class OutputResult:
    """One output of a backend against the reference's, over all images.

    Attributes:
        name: of the output.
        elements: how many numbers were compared.
        differing: how many of them are not equal.
        largest_difference: largest absolute difference of two finite numbers, in codes where it has codes.
        not_finite: how many numbers are NaN or infinite.
    """

    name: str
    elements: int
    differing: int
    largest_difference: float
    not_finite: int


@dataclass(frozen=True, kw_only=True)
class BackendResult:
    """One backend against the reference, over all images.

    Attributes:
        name: "ONNX Runtime (LEVEL)" or the name the caller gave.
        must_equal: whether a difference makes the verification fail.
        accuracy: the metric, a fraction in [0, 1]; None if none was measured.
        differing_logits: how many numbers are not equal, all outputs together.
        changed_predictions: how many images get another class; 0 where the first output is no row of logits.
        largest_difference: largest absolute difference of two finite numbers.
        not_finite: how many numbers are NaN or infinite.
        outputs: each output, where there is more than one row of logits.
    """

    name: str
    must_equal: bool
    accuracy: float | None
    differing_logits: int
    changed_predictions: int
    largest_difference: float
    not_finite: int
    outputs: tuple[OutputResult, ...] = ()


class OutputCount:
    """Running counts of one output of a backend against the reference's."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.elements = self.differing = self.not_finite = 0
        self.largest = 0.0

    def add(self, found: NDArray[Any], expected: NDArray[Any]) -> None:
        """Count one batch."""
        finite = np.isfinite(found)
        both = finite & np.isfinite(expected)
        distances = np.abs(found[both].astype(np.float64) - expected[both].astype(np.float64))
        self.elements += found.size
        self.differing += int((found != expected).sum())  # NaN differs from everything, itself included
        self.largest = max(self.largest, float(distances.max(initial=0.0)))
        self.not_finite += int((~finite).sum())

    def result(self) -> OutputResult:
        """Return the counts of all batches."""
        return OutputResult(
            name=self.name,
            elements=self.elements,
            differing=self.differing,
            largest_difference=self.largest,
            not_finite=self.not_finite,
        )


class LogitCounts:
    """Running counts of one backend against the reference.

    Args:
        model: the file.
        metric: makes the metric that is measured; None for none.
    """

    def __init__(self, model: ExportedModel, metric: Callable[[], Metric] | None) -> None:
        self._model = model
        self._metric = None if metric is None else metric()
        self._outputs = [OutputCount(name) for name in model.output_names]
        self._changed = 0

    def add(self, found: Outputs, expected: Outputs, labels: NDArray[Any]) -> None:
        """Count one batch."""
        for output in self._outputs:
            output.add(found[output.name], expected[output.name])
        if self._model.has_classes:
            first = self._outputs[0].name
            self._changed += int((predicted_classes(found[first]) != predicted_classes(expected[first])).sum())
        if self._metric is not None:
            self._metric.add(self._model.values(found), labels)

    def result(self, name: str, must_equal: bool) -> BackendResult:
        """Return the counts of all batches, of which there was at least one."""
        outputs = tuple(output.result() for output in self._outputs)
        return BackendResult(
            name=name,
            must_equal=must_equal,
            accuracy=None if self._metric is None else self._metric.value(),
            differing_logits=sum(output.differing for output in outputs),
            changed_predictions=self._changed,
            largest_difference=max(output.largest_difference for output in outputs),
            not_finite=sum(output.not_finite for output in outputs),
            outputs=() if len(outputs) == 1 and self._model.has_classes else outputs,
        )


class DifferingImages:
    """The first images whose outputs differ between two backends; until there is one, the first images of all.

    Attributes:
        pair: the names of the two.
        differ: whether any number differs.
    """

    def __init__(self, pair: tuple[str, str]) -> None:
        self.pair = pair
        self.differ = False
        self._kept: list[tuple[int, NDArray[np.uint8], dict[str, Outputs]]] = []

    def add(self, found: Mapping[str, Outputs], images: NDArray[np.uint8], start: int) -> None:
        """Keep images of a batch, as needed; `start` is the index of its first image."""
        first, second = (found[name] for name in self.pair)
        wrong = [(first[name] != second[name]).reshape(len(images), -1).any(axis=1) for name in first]
        chosen = np.flatnonzero(np.any(wrong, axis=0))
        if chosen.size and not self.differ:
            self.differ, self._kept = True, []
        if not self.differ:
            chosen = np.arange(len(images))
        for index in chosen[: _KEPT - len(self._kept)].tolist():
            rows = {name: {key: value[index].copy() for key, value in found[name].items()} for name in self.pair}
            self._kept.append((start + index, images[index].copy(), rows))

    def indices(self) -> tuple[int, ...]:
        """Return the images' indices in the data set."""
        return tuple(index for index, _, _ in self._kept)

    def images(self) -> NDArray[np.uint8]:
        """Return the images, uint8 [N, C, H, W]."""
        return np.stack([image for _, image, _ in self._kept])

    def outputs(self, name: str) -> Outputs:
        """Return the results of one of the two backends for the images, by output."""
        kept: Sequence[Outputs] = [rows[name] for _, _, rows in self._kept]
        return {key: np.stack([row[key] for row in kept]) for key in kept[0]}
