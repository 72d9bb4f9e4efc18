"""Fashion-MNIST, from Debian's package `dataset-fashion-mnist` where it is installed, through torchvision elsewhere."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qil_deploy.errors import DataError

from .image_set import ImageSet, Split
from .roots import data_root

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def load_fashion_mnist(split: Split) -> ImageSet:
    """Load one split, [N, 1, 28, 28].

    Raises:
        DataError: a file is damaged, or nothing is installed and nothing can be downloaded.
    """
    prefix = "train" if split == "train" else "t10k"
    if not FASHION_MNIST_FOLDER.is_dir():
        return _by_torchvision(split)
    images = _read_idx(FASHION_MNIST_FOLDER / f"{prefix}-images-idx3-ubyte.gz", dimensions=3)
    labels = _read_idx(FASHION_MNIST_FOLDER / f"{prefix}-labels-idx1-ubyte.gz", dimensions=1)
    return ImageSet(images=images[:, None], labels=labels.astype(np.int64), class_names=FASHION_MNIST_CLASSES)


def _by_torchvision(split: Split) -> ImageSet:
    try:
        from torchvision.datasets import FashionMNIST
    except ImportError as error:
        raise DataError(
            "data set 'fashion-mnist' needs Debian's package dataset-fashion-mnist, or torchvision to download "
            "it: pip install 'qil-deploy[train]'."
        ) from error
    try:
        data = FashionMNIST(data_root(), train=split == "train", download=True)
    except (RuntimeError, OSError) as error:
        raise DataError(f"data set 'fashion-mnist' could not be downloaded: {error}") from error
    return ImageSet(
        images=data.data.numpy()[:, None],
        labels=data.targets.numpy().astype(np.int64),
        class_names=FASHION_MNIST_CLASSES,
    )


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read a gzipped IDX file of unsigned bytes (magic 0x0000 08 DIM, big-endian sizes, then the data)."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); install dataset-fashion-mnist again.") from error
    header = 4 * (1 + dimensions)
    sizes = tuple(int.from_bytes(content[start : start + 4]) for start in range(4, header, 4))
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) != header + math.prod(sizes):
        raise DataError(f"{path} is no IDX file of {dimensions} dimensions; install dataset-fashion-mnist again.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(sizes)
