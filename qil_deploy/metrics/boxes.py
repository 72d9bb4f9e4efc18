"""Boxes from maps, in NumPy: the description of a detector's outputs in its file, and their decoding.

A map [A * (values + classes), H, W] belongs to a grid of cells, `stride` pixels apart, with A boxes in each. Without
anchors A is 1 and there are four values, the distances from the middle of the cell to the four sides:

    middle = (cell + 1/2) * stride        distance = stride * exp(value)        score = sigmoid(class)

With anchors (width, height), A of them, there are five, as YOLO has them: shift, size, and whether there is an object:

    middle = (cell + 2 * sigmoid(shift) - 1/2) * stride        size = anchor * (2 * sigmoid(size))**2
    score = sigmoid(object) * sigmoid(class)

Of boxes of one class that overlap by more than `overlap`, the highest-scoring one is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qil_deploy.errors import ConfigError

_LARGEST_EXPONENT: Final = 10.0
_MOST_CANDIDATES: Final = 1000  # compared with each other in one image
_SIDES, _VALUES = 4, 5


@dataclass(frozen=True, kw_only=True)
class Detections:
    """The boxes found in one image, the highest score first.

    Attributes:
        boxes: float64 [K, 4], left, top, right, bottom in pixels.
        scores: float64 [K], in [0, 1].
        classes: int64 [K].
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    classes: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of boxes."""
        return len(self.scores)


@dataclass(frozen=True, kw_only=True)
class BoxDecoder:
    """Encoding of boxes in a detector's outputs.

    Attributes:
        outputs: names of the maps.
        strides: of each, in pixels.
        classes: how many.
        anchors: of each map, (width, height) in pixels; none for a detector without anchors.
        score: lowest score of a box that counts.
        overlap: IoU beyond which one of two boxes of a class is left out.
    """

    outputs: tuple[str, ...]
    strides: tuple[int, ...]
    classes: int
    anchors: tuple[tuple[tuple[float, float], ...], ...] = ()
    score: float = 0.05
    overlap: float = 0.5

    def __post_init__(self) -> None:
        """Check that all fields agree.

        Raises:
            ConfigError: they do not.
        """
        if not self.outputs or len(self.strides) != len(self.outputs) or min(self.strides) < 1:
            raise ConfigError(f"strides are {self.strides}; each of the outputs {self.outputs} needs one, from 1.")
        if self.classes < 1:
            raise ConfigError(f"classes is {self.classes}; a detector has at least one class.")
        if self.anchors and (len(self.anchors) != len(self.outputs) or not all(self.anchors)):
            raise ConfigError(
                f"anchors are given for {len(self.anchors)} outputs of {len(self.outputs)}; give all or none."
            )
        if not all(math.isfinite(size) and size > 0 for anchors in self.anchors for pair in anchors for size in pair):
            raise ConfigError(f"anchors are {self.anchors}; widths and heights are positive.")
        if not (0 <= self.score <= 1 and 0 <= self.overlap <= 1):
            raise ConfigError(f"score is {self.score} and overlap {self.overlap}; both are from 0 to 1.")

    def channels(self, index: int) -> int:
        """Return the number of channels that an output must have."""
        if self.anchors:
            return len(self.anchors[index]) * (_VALUES + self.classes)
        return _SIDES + self.classes

    def decode(self, outputs: Mapping[str, NDArray[Any]]) -> list[Detections]:
        """Return the detections in each image.

        Args:
            outputs: by name, [N, C, H, W] each, as floats.

        Raises:
            ConfigError: an output is missing, or has another number of channels.
        """
        maps = [np.asarray(outputs[name], np.float64) for name in self._checked(outputs)]
        return [self._of_image([each[image] for each in maps]) for image in range(len(maps[0]))]

    def _checked(self, outputs: Mapping[str, NDArray[Any]]) -> tuple[str, ...]:
        for index, name in enumerate(self.outputs):
            if name not in outputs:
                raise ConfigError(f"there is no output {name!r}, only {', '.join(outputs)}.")
            if outputs[name].ndim != 4 or outputs[name].shape[1] != self.channels(index):
                raise ConfigError(
                    f"output {name!r} is of shape {list(outputs[name].shape)}; boxes of {self.classes} classes need "
                    f"[N, {self.channels(index)}, H, W]."
                )
        return self.outputs

    def _of_image(self, maps: list[NDArray[np.float64]]) -> Detections:
        found = [self._of_map(each, index) for index, each in enumerate(maps)]
        boxes = np.concatenate([boxes for boxes, _ in found])
        scores = np.concatenate([scores for _, scores in found])
        rows, classes = np.nonzero(scores >= self.score)
        chosen = scores[rows, classes]
        order = np.argsort(-chosen, kind="stable")[:_MOST_CANDIDATES]
        boxes, chosen, classes = boxes[rows[order]], chosen[order], classes[order]
        kept = suppress(boxes, classes, self.overlap)
        return Detections(boxes=boxes[kept], scores=chosen[kept], classes=classes[kept].astype(np.int64))

    def _of_map(self, values: NDArray[np.float64], index: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the boxes [K, 4] and their scores [K, classes] of one map [C, H, W]."""
        stride, (height, width) = self.strides[index], values.shape[1:]
        row, column = np.mgrid[:height, :width].astype(np.float64)
        if not self.anchors:
            x, y = (column + 0.5) * stride, (row + 0.5) * stride
            left, top, right, bottom = stride * np.exp(np.minimum(values[:_SIDES], _LARGEST_EXPONENT))
            boxes = np.stack([x - left, y - top, x + right, y + bottom], axis=-1)
            scores = np.moveaxis(_sigmoid(values[_SIDES:]), 0, -1)
            return boxes.reshape(-1, _SIDES), scores.reshape(-1, self.classes)
        anchors = np.array(self.anchors[index])
        each = _sigmoid(values.reshape(len(anchors), -1, height, width))
        x, y = (column + 2 * each[:, 0] - 0.5) * stride, (row + 2 * each[:, 1] - 0.5) * stride
        half_width, half_height = (anchors[:, axis, None, None] * (2 * each[:, 2 + axis]) ** 2 / 2 for axis in (0, 1))
        boxes = np.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=-1)
        scores = np.moveaxis(each[:, 4:5] * each[:, _VALUES:], 1, -1)
        return boxes.reshape(-1, _SIDES), scores.reshape(-1, self.classes)


def suppress(boxes: NDArray[np.float64], classes: NDArray[Any], overlap: float) -> NDArray[np.int64]:
    """Return the boxes that remain when each in turn drops later boxes of its class that overlap it by more.

    Args:
        boxes: [K, 4], the best first.
        classes: [K].
        overlap: IoU, in [0, 1].
    """
    kept: list[int] = []
    left = np.ones(len(boxes), bool)
    for index in range(len(boxes)):
        if left[index]:
            kept.append(index)
            rest = np.flatnonzero(left[index + 1 :]) + index + 1
            close = box_ious(boxes[index : index + 1], boxes[rest])[0] > overlap
            left[rest[close & (classes[rest] == classes[index])]] = False
    return np.array(kept, np.int64)


def box_ious(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Return the intersection over union of every box of `a` [K, 4] with every one of `b` [L, 4]; [K, L]."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=-1) for boxes in (a, b)]
    either = areas[0][:, None] + areas[1][None] - shared
    return np.where(either > 0, shared / np.where(either > 0, either, 1), 0.0)


def decoder_in_metadata(decoder: BoxDecoder | None) -> dict[str, Any]:
    """Return the entry of a file's metadata; none without a decoder."""
    return {} if decoder is None else {"boxes": asdict(decoder)}


def decoder_of_metadata(metadata: Mapping[str, Any]) -> BoxDecoder | None:
    """Return the decoder described by metadata that `read_metadata` has checked; None if there is none.

    Raises:
        ConfigError: it contradicts itself.
        KeyError, TypeError, ValueError: an entry is missing or invalid.
    """
    if "boxes" not in metadata:
        return None
    entry = metadata["boxes"]
    return BoxDecoder(
        outputs=tuple(entry["outputs"]),
        strides=tuple(entry["strides"]),
        classes=entry["classes"],
        anchors=tuple(tuple((float(w), float(h)) for w, h in anchors) for anchors in entry["anchors"]),
        score=float(entry["score"]),
        overlap=float(entry["overlap"]),
    )


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))
