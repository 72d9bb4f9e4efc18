"""Batches for training from an image set held in memory.

Images stay uint8 until the batch is made; augmentation (flip, shifted crop) moves pixels and never blends
them, so that an augmented image is still a uint8 image and its codes are exact.

Everything random is a function of seed, epoch and batch: any batch of any epoch can be made again, so that a run
resumes where it was interrupted, and several processes, each taking its rows of every batch, together see what one
would.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from qil_deploy.datasets import ImageSet
from qil_deploy.errors import ConfigError
from qil_deploy.preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True)
class Share:
    """Rows of every batch for one process: `rank`, `rank + of`, `rank + 2 * of`, ..."""

    rank: int = 0
    of: int = 1

    def take(self, values: Tensor) -> Tensor:
        """Return this process's rows."""
        return values[self.rank :: self.of]


def check_batch_size(batch_size: int, images: int, share: Share) -> None:
    """Check that there are enough images for a batch, and that the processes can share it equally.

    Raises:
        ConfigError: there are fewer, or the processes cannot share them evenly.
    """
    if batch_size > images:
        raise ConfigError(f"batch_size is {batch_size}, but the training set has only {images} images.")
    if batch_size % share.of:
        raise ConfigError(f"batch_size is {batch_size}, which {share.of} processes cannot share evenly.")


class Batches(Protocol):
    """Source of batches for training.

    Attributes:
        batch_size: images per batch, over all processes.
        preprocessing: map from pixels to input.
    """

    batch_size: int
    preprocessing: Preprocessing

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (input float32 [n, C, H, W], labels int64 [n]) of this process, from batch `start` of an epoch on."""


def seeded(*keys: int) -> torch.Generator:
    """Return a generator whose numbers depend on these keys alone."""
    (state,) = np.random.SeedSequence(keys).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def to_input(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Map uint8 images [N, C, H, W] to the network's float32 input (channels last in memory)."""
    shift, factor = (
        torch.tensor(values, dtype=torch.float32, device=images.device)[:, None, None]
        for values in (preprocessing.shift, preprocessing.factor)
    )
    x = (images.to(torch.float32) - shift) * factor
    return x.contiguous(memory_format=torch.channels_last)


def draw_flips(count: int, generator: torch.Generator) -> Tensor:
    """Draw which of `count` images are mirrored, bool [count]: each with probability one half."""
    return torch.rand(count, generator=generator) < 0.5


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image [N, C, H, W] left to right with probability one half."""
    flip = draw_flips(len(images), generator)
    return torch.where(flip[:, None, None, None], images.flip(3), images)


def random_shift(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Shift each image [N, C, H, W] by up to `padding` pixels either way, filling with pixel value 0."""
    count, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    top = torch.randint(0, 2 * padding + 1, (count,), generator=generator)
    left = torch.randint(0, 2 * padding + 1, (count,), generator=generator)
    rows = (top[:, None] + torch.arange(height))[:, None, :, None]
    columns = (left[:, None] + torch.arange(width))[:, None, None, :]
    return padded[torch.arange(count)[:, None, None, None], torch.arange(channels)[None, :, None, None], rows, columns]


@lru_cache(maxsize=2)
def _shuffled(count: int, seed: int, epoch: int) -> Tensor:
    """Return the order of `count` images in one epoch; it must not be modified."""
    return torch.randperm(count, generator=seeded(seed, epoch))


class ArrayBatches:
    """Shuffled, augmented batches of a training set in memory; the last, smaller batch of an epoch is dropped.

    Args:
        data: the training set.
        preprocessing: map from pixels to input.
        batch_size: images per batch over all processes, at most the size of the set.
        flip: mirror at random.
        shift: shift by up to this many pixels at random.
        seed: of order and augmentation.
        share: of this process.

    Raises:
        ConfigError: a batch larger than the set, or one that the processes cannot share evenly.
    """

    def __init__(
        self,
        data: ImageSet,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        flip: bool,
        shift: int,
        seed: int,
        share: Share = Share(),
    ) -> None:
        check_batch_size(batch_size, len(data), share)
        self.images = torch.tensor(data.images)
        self.labels = torch.tensor(data.labels)
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self.flip = flip
        self.shift = shift
        self.seed = seed
        self.share = share

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.images) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (input float32 [n, C, H, W], labels int64 [n]) of this process, from batch `start` of an epoch on."""
        for index in range(start, len(self)):
            chosen = self._chosen(epoch, index)
            images = self._augment(self.images[chosen], seeded(self.seed, epoch, index))
            yield to_input(self.share.take(images), self.preprocessing), self.share.take(self.labels[chosen])

    def drawn(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Return the images of this process in a batch, int64 [n], and which of them are mirrored, bool [n].

        It does not say how far they are shifted.
        """
        chosen = self._chosen(epoch, index)
        none = torch.zeros(len(chosen), dtype=torch.bool)
        mirrored = draw_flips(len(chosen), seeded(self.seed, epoch, index)) if self.flip else none
        return self.share.take(chosen), self.share.take(mirrored)

    def _chosen(self, epoch: int, index: int) -> Tensor:
        """Return the images of a batch, over all processes, int64 [batch_size]."""
        order = _shuffled(len(self.images), self.seed, epoch)
        return order[index * self.batch_size : (index + 1) * self.batch_size]

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if self.flip:
            images = random_flip(images, generator)
        if self.shift:
            images = random_shift(images, self.shift, generator)
        return images
