"""Labelled uint8 images: a whole split in memory, or batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qil_deploy.errors import DataError

Split = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Labelled images of one split.

    Attributes:
        images: uint8, [N, C, H, W].
        labels: int64, [N], indices into `class_names`; of networks that return maps, what their metric wants
            (`qil_deploy.metrics`): int64 [N, H, W] or boxes, float32 [N, boxes, 5].
        class_names: one name per class.
    """

    images: NDArray[np.uint8]
    labels: NDArray[Any]
    class_names: tuple[str, ...]

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
        """Return the same images, to be read batch by batch.

        Raises:
            DataError: images that are not of shape [N, C, H, W].
        """
        if self.images.ndim != 4:
            raise DataError(
                f"images are {self.images.dtype} of shape {list(self.images.shape)}; [N, C, H, W] is needed."
            )
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

    Iterating yields an `ImageSet` of `batch_size` images each, the last one smaller where the size asks for it, in the
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
