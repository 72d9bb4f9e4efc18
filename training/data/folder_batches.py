"""Training batches from a folder of images too large for memory, decoded by worker processes as they are needed.

An image is cut out at random and resized to the shape of the network (torchvision's RandomResizedCrop: 8 to 100 % of
the area, proportions 3:4 to 4:3), mirrored at random, and is a uint8 image again, whose codes are exact. What is drawn
depends on the seed, the epoch and the image alone, whichever process or worker draws it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from qil_deploy.datasets import ImageFolder, to_array
from qil_deploy.errors import DataError
from qil_deploy.preprocessing import Preprocessing

from .memory_batches import Share, check_batch_size, seeded, to_input

# An error is handed over: a worker that raises one gives the main process a traceback instead of a sentence.
Sample = tuple[Tensor, int] | DataError


class FolderBatches:
    """Shuffled, augmented batches of a folder; the last, smaller batch of an epoch is dropped.

    Args:
        folder: the training images.
        preprocessing: map from pixels to input; its shape is the one images are brought to.
        batch_size: images per batch over all processes, at most the size of the set.
        crop: cut out at random; if not, images are fitted as for evaluation.
        flip: mirror at random.
        seed: of order and augmentation.
        workers: processes that decode, no more of them than there are cores; 0 decodes in this one.
        share: of this process; None takes whole batches.

    Raises:
        ConfigError: a batch larger than the set, or one that the processes cannot share evenly.
    """

    def __init__(
        self,
        folder: ImageFolder,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        crop: bool,
        flip: bool,
        seed: int,
        workers: int = 4,
        share: Share | None = None,
    ) -> None:
        self.share = share or Share()
        check_batch_size(batch_size, len(folder), self.share)
        self.folder = folder
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self.crop = crop
        self.flip = flip
        self.seed = seed
        self.workers = min(workers, os.cpu_count() or 1)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self.folder) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (input float32 [n, C, H, W], labels int64 [n]) of this process, from batch `start` of an epoch on.

        Raises:
            DataError: an image cannot be read.
        """
        order = torch.randperm(len(self.folder), generator=seeded(self.seed, epoch))
        chosen = [
            self.share.take(order[index * self.batch_size : (index + 1) * self.batch_size]).tolist()
            for index in range(start, len(self))
        ]
        loader = DataLoader(
            _EpochImages(self, epoch),
            batch_sampler=chosen,
            num_workers=self.workers,
            collate_fn=_collate,
            generator=torch.Generator(),  # the loader draws a number itself, otherwise from the global one
        )
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            images, labels = batch
            yield to_input(images, self.preprocessing), labels


class _EpochImages(Dataset[Sample]):
    """The augmented images of one epoch."""

    def __init__(self, batches: FolderBatches, epoch: int) -> None:
        self.folder = batches.folder
        self.shape = batches.preprocessing.shape
        self.crop = batches.crop
        self.seed = batches.seed
        self.epoch = epoch
        _, height, width = self.shape
        # On PIL images antialiasing is always on.
        self.cut_out = v2.RandomResizedCrop((height, width), antialias=True)
        self.mirror = v2.RandomHorizontalFlip(0.5 if batches.flip else 0.0)

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> Sample:
        try:
            image = self.folder.decode(index, self.shape[0])
        except DataError as error:
            return error
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator only
            torch.default_generator.manual_seed(seeded(self.seed, self.epoch, index).initial_seed())
            fitted = self.cut_out(image) if self.crop else self.folder.fit_to(image, self.shape)
            array = to_array(self.mirror(fitted))
        return torch.from_numpy(array), int(self.folder.labels[index])


def _collate(samples: list[Sample]) -> tuple[Tensor, Tensor] | DataError:
    images, labels = [], []
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
        images.append(sample[0])
        labels.append(sample[1])
    return torch.stack(images), torch.tensor(labels)
