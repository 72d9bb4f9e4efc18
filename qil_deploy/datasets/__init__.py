"""Data sets by name, as uint8 images [N, C, H, W] and int64 labels [N]: in memory, or batch by batch.

    digits                 scikit-learn's 8x8 set: ships with it, nothing to download
    fashion-mnist          Debian's package `dataset-fashion-mnist` where it is installed, else downloaded
    cifar10, cifar100      downloaded to `QIL_DEPLOY_DATA`
    imagenet               `train/CLASS` and `val/CLASS` in the folder that `QIL_DEPLOY_IMAGENET` names
    imagenet:FOLDER        the same in FOLDER
    FOLDER                 `train/CLASS/*.png` and `test/CLASS/*.png` (or `val`), images of one size

The name also decides how images reach the shape of a network: sets in memory are resized bilinearly (`resize`), folders
resized and cut as the network's preprocessing says, or else stretched, and `imagenet` scaled and cut as usual
(`image_folder`). A checkpoint and an exported model keep the name, so
that they are evaluated on the same bytes. Needs neither torch nor onnx unless torchvision has to download.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from qil_deploy.errors import DataError
from qil_deploy.preprocessing import Preprocessing

from .cifar import load_cifar
from .fashion_mnist import load_fashion_mnist
from .image_folder import ImageFolder, open_image_folder, resized_and_cut, to_array
from .image_set import ImageBatches, ImageSet, Split
from .resize import resize_images
from .roots import imagenet_root

__all__ = [
    "ImageBatches",
    "ImageFolder",
    "ImageSet",
    "Split",
    "find_image_folder",
    "load_batches",
    "load_images",
    "preprocessing_for",
    "resize_images",
    "resized_and_cut",
    "to_array",
]

# Mean and standard deviation of the pixels of the training images, in [0, 1].
_STATISTICS = {
    "digits": (0.305, 0.376),
    "fashion-mnist": (0.286, 0.353),
    "cifar10": (0.473, 0.252),
    "cifar100": (0.478, 0.268),
}
_FOLDER_STATISTICS = (0.449, 0.226)  # of ImageNet
_DIGITS_TEST_EVERY = 5


def load_images(
    name: str,
    split: Split = "test",
    *,
    shape: tuple[int, int, int] | None = None,
    preprocessing: Preprocessing | None = None,
) -> ImageSet:
    """Load one split of a data set into memory.

    Args:
        name: a data set, or the path of a folder of images.
        split: `train` or `test`.
        shape: (channels, height, width) to which the images are brought; None: their own, which for a folder is
            its first image's size in colour.
        preprocessing: of the network, instead of `shape`: pictures of a folder are resized and cut as it says.

    Raises:
        DataError: the name is unknown, a folder, package or network is missing, there are no images, or the shape
            cannot be had.
    """
    folder = find_image_folder(name, split)
    shape = shape if preprocessing is None else preprocessing.shape
    if folder is not None:
        folder = replace(folder, preprocessing=preprocessing)
        return folder.images(0, len(folder), shape or folder.default_shape())
    images = _load_whole(name, split)
    return images if shape is None else _resized(images, shape)


def load_batches(
    name: str,
    split: Split = "test",
    *,
    shape: tuple[int, int, int] | None = None,
    preprocessing: Preprocessing | None = None,
    batch_size: int,
) -> ImageBatches:
    """Open one split of a data set, to be read batch by batch.

    Args:
        name, split, shape, preprocessing: as `load_images` takes them; every image is the same.
        batch_size: images per batch, at least 1.

    Raises:
        DataError: as `load_images`; a damaged image is found when its batch is read.
    """
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; it must be at least 1.")
    folder = find_image_folder(name, split)
    shape = shape if preprocessing is None else preprocessing.shape
    if folder is not None:
        folder = replace(folder, preprocessing=preprocessing)
        fitted = shape or folder.default_shape()
        return ImageBatches(
            count=len(folder),
            shape=fitted,
            labels=folder.labels,
            class_names=folder.class_names,
            batch_size=batch_size,
            read=partial(_read_folder, folder, fitted),
        )
    images = _load_whole(name, split)
    batches = images.batches(batch_size)
    if shape is None:
        return batches
    _resized(images.first(1), shape)  # refuses an impossible shape
    return replace(batches, shape=shape, read=lambda start, stop: _resized(images.part(start, stop), shape))


def _read_folder(folder: ImageFolder, shape: tuple[int, int, int], start: int, stop: int) -> ImageSet:
    return folder.images(start, stop, shape)


def find_image_folder(name: str, split: Split) -> ImageFolder | None:
    """Return the images of a data set that is a folder, not yet read; None for sets that are loaded whole.

    Raises:
        DataError: as `load_images`.
    """
    if name in _STATISTICS:
        return None
    imagenet = imagenet_root(name)
    if imagenet is not None:
        return open_image_folder(imagenet, split, "centre crop")
    if not Path(name).is_dir():
        known = sorted([*_STATISTICS, "imagenet"])
        raise DataError(f"unknown data set {name!r}: it is none of {known}, and there is no such folder.")
    return open_image_folder(Path(name), split)


def preprocessing_for(name: str, images: ImageSet | ImageBatches) -> Preprocessing:
    """Return the preprocessing of a data set, with its images' shape."""
    mean, std = _STATISTICS.get(name, _FOLDER_STATISTICS)
    channels, height, width = images.shape if isinstance(images, ImageBatches) else images.images.shape[1:]
    return Preprocessing.from_statistics((channels, height, width), mean, std)


def _resized(images: ImageSet, shape: tuple[int, int, int]) -> ImageSet:
    return replace(images, images=resize_images(images.images, shape))


def _load_whole(name: str, split: Split) -> ImageSet:
    if name == "digits":
        return _digits(split)
    if name == "fashion-mnist":
        return load_fashion_mnist(split)
    return load_cifar(name, split)


def _digits(split: Split) -> ImageSet:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("data set 'digits' ships with scikit-learn: pip install scikit-learn.") from error
    bunch = load_digits()
    # Grey levels are 0..16; spread them over uint8.
    images = np.rint(bunch.images * (255.0 / 16.0)).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    test = np.arange(len(labels)) % _DIGITS_TEST_EVERY == 0
    chosen = test if split == "test" else ~test
    return ImageSet(images=images[chosen], labels=labels[chosen], class_names=tuple(str(digit) for digit in range(10)))
