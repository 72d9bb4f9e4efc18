"""Batches for training and evaluation from an image set held in memory.

Images stay uint8 until the batch is made; augmentation (flip, shifted crop) moves pixels and never blends
them, so that an augmented image is still a uint8 image and its codes are exact.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from qil_deploy.datasets import ImageSet
from qil_deploy.errors import ConfigError
from qil_deploy.preprocessing import Preprocessing


def to_input(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Map uint8 images [N, C, H, W] to the network's float32 input (channels last in memory)."""
    x = (images.to(torch.float32) - preprocessing.zero_point) * preprocessing.scale
    return x.contiguous(memory_format=torch.channels_last)


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image [N, C, H, W] left to right with probability one half."""
    flip = torch.rand(len(images), generator=generator) < 0.5
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


class TrainingBatches:
    """Shuffled, augmented batches of a training set; the last, smaller batch of an epoch is dropped.

    Args:
        data: the training set.
        preprocessing: map from pixels to input.
        batch_size: images per batch, at most the size of the set.
        flip: mirror at random.
        shift: shift by up to so many pixels at random.
        generator: source of all randomness.
    """

    def __init__(
        self,
        data: ImageSet,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        flip: bool,
        shift: int,
        generator: torch.Generator,
    ) -> None:
        if batch_size > len(data):
            raise ConfigError(f"batch_size is {batch_size}, but the training set has only {len(data)} images.")
        self.images = torch.tensor(data.images)
        self.labels = torch.tensor(data.labels)
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self.flip = flip
        self.shift = shift
        self.generator = generator

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.images) // self.batch_size

    def epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (input float32 [N, C, H, W], labels int64 [N]) once through the set, in a new order."""
        order = torch.randperm(len(self.images), generator=self.generator)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            chosen = order[start : start + self.batch_size]
            images = self.images[chosen]
            if self.flip:
                images = random_flip(images, self.generator)
            if self.shift:
                images = random_shift(images, self.shift, self.generator)
            yield to_input(images, self.preprocessing), self.labels[chosen]
