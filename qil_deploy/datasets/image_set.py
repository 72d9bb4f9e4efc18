"""Labelled uint8 images: a whole split in memory, or batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qil_deploy.errors import DataError

Split = Literal["train", "test"]

_PIXELS = "give pixels before normalisation, a NumPy array of uint8 [N, C, H, W] (of a tensor: .numpy())"


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Labelled images of one split.

    Attributes:
        images: uint8, [N, C, H, W].
        labels: int64, [N], indices into `class_names`; for networks that return maps, what their metric needs
            (`qil_deploy.metrics`): int64 [N, H, W] or boxes, float32 [N, boxes, 5].
        class_names: one name per class.
    """

    images: NDArray[np.uint8]
    labels: NDArray[Any]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check dtypes and shapes.

        Raises:
            DataError: images that are no NumPy array of uint8 [N, C, H, W], or another number of labels than of images.
        """
        images: object = self.images  # of callers whose types nothing has checked
        if not isinstance(images, np.ndarray):
            raise DataError(f"images are a {type(images).__name__}; {_PIXELS}.")
        if images.dtype != np.uint8 or images.ndim != 4:
            raise DataError(f"images are {images.dtype} of shape {list(images.shape)}; {_PIXELS}.")
        labels: object = self.labels
        if not isinstance(labels, np.ndarray) or len(labels) != len(images):
            raise DataError(
                f"labels are a {type(labels).__name__} of length {len(self.labels)}, for {len(images)} images; give a "
                "NumPy array with one entry for each image."
            )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def first(self, count: int) -> ImageSet:
        """Return the first `count` images."""
        return self.part(0, count)

    def part(self, start: int, stop: int) -> ImageSet:
        """Return the images from `start` up to `stop`."""
        return replace(self, images=self.images[start:stop], labels=self.labels[start:stop])

    def batches(self, batch_size: int) -> ImageBatches:
        """Return the same images as a split that is read batch by batch."""
        channels, height, width = self.images.shape[1:]
        return ImageBatches(
            count=len(self),
            shape=(channels, height, width),
            labels=self.labels,
            class_names=self.class_names,
            batch_size=batch_size,
            read=self.part,
        )


@dataclass(frozen=True, kw_only=True)
class ImageBatches:
    """A split that is read batch by batch, so that memory holds one batch, however large the set is.

    Iterating yields an `ImageSet` of `batch_size` images each, the last one smaller if necessary, in the
    same order every time.

    Attributes:
        count: images in all.
        shape: (channels, height, width) of each.
        labels: int64, [count], or as in `ImageSet`.
        class_names: one name per class.
        batch_size: images per batch.
        read: returns the images from one index up to another.
    """

    count: int
    shape: tuple[int, int, int]
    labels: NDArray[Any]
    class_names: tuple[str, ...]
    batch_size: int
    read: Callable[[int, int], ImageSet]

    def __len__(self) -> int:
        """Return the number of images."""
        return self.count

    def __iter__(self) -> Iterator[ImageSet]:
        """Yield the batches."""
        for start in range(0, self.count, self.batch_size):
            yield self.read(start, min(start + self.batch_size, self.count))

    def load(self, count: int) -> ImageSet:
        """Read the first `count` images, or all where there are fewer."""
        return self.read(0, min(count, self.count))

    def first(self, count: int) -> ImageBatches:
        """Return the first `count` images."""
        return replace(self, count=min(count, self.count), labels=self.labels[:count])
