"""CIFAR-10 and CIFAR-100 in their binary version; the one for Python is a pickle, which is never loaded.

A file is records of one label byte (CIFAR-100: the coarse one, then the fine one, which is used) and 3072 pixels, [3,
32, 32]. See https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qil_deploy.errors import DataError

from .image_set import ImageSet, Split
from .roots import DATA_VARIABLE, data_root

_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32


@dataclass(frozen=True, kw_only=True)
class _Archive:
    url: str
    md5: str
    folder: str
    files: dict[Split, tuple[str, ...]]
    names: str
    label_bytes: int


ARCHIVES = {
    "cifar10": _Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        files={
            "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
            "test": ("test_batch.bin",),
        },
        names="batches.meta.txt",
        label_bytes=1,
    ),
    "cifar100": _Archive(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        files={"train": ("train.bin",), "test": ("test.bin",)},
        names="fine_label_names.txt",
        label_bytes=2,
    ),
}


def load_cifar(name: str, split: Split) -> ImageSet:
    """Load `cifar10` or `cifar100` from the data folder, after downloading it where it is missing.

    Raises:
        DataError: it cannot be downloaded, or a file is missing or damaged.
    """
    archive = ARCHIVES[name]
    folder = data_root() / archive.folder
    if not folder.is_dir():
        _download(name, archive)
    class_names = tuple(line for line in _read(folder / archive.names).decode(errors="replace").splitlines() if line)
    size = archive.label_bytes + _PIXELS
    parts = []
    for file in archive.files[split]:
        path = folder / file
        content = np.frombuffer(_read(path), np.uint8)
        if not len(content) or len(content) % size:
            raise DataError(
                f"{path} has {len(content)} bytes, but whole records of {size} are wanted; remove {folder}, and it is "
                "downloaded again."
            )
        parts.append(content.reshape(-1, size))
    records = np.concatenate(parts)
    labels = records[:, archive.label_bytes - 1].astype(np.int64)
    if labels.max() >= len(class_names):
        raise DataError(
            f"{folder} has the label {labels.max()}, but {archive.names} names {len(class_names)} classes; remove the "
            "folder, and it is downloaded again."
        )
    images = np.ascontiguousarray(records[:, archive.label_bytes :]).reshape(-1, *_SHAPE)
    return ImageSet(images=images, labels=labels, class_names=class_names)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); remove its folder, and it is downloaded again."
        ) from error


def _download(name: str, archive: _Archive) -> None:
    root = data_root()
    by_hand = f"unpack {archive.url} in {root} (or in the folder that {DATA_VARIABLE} names)"
    try:
        from torchvision.datasets.utils import download_and_extract_archive
    except ImportError as error:
        raise DataError(
            f"data set {name!r} is not in {root}, and torchvision, which downloads it, is not installed: pip install "
            f"'qil-deploy[train]', or {by_hand}."
        ) from error
    try:
        download_and_extract_archive(archive.url, str(root), md5=archive.md5)
    except (RuntimeError, OSError) as error:  # no network is an OSError, a wrong checksum a RuntimeError
        raise DataError(f"data set {name!r} could not be downloaded ({error}); {by_hand}.") from error
