"""Image sets as arrays: uint8 images [N, C, H, W] and int64 labels [N].

`digits` is scikit-learn's 8x8 set (embedded, nothing to download); `fashion-mnist` is read from Debian's
package `dataset-fashion-mnist` where it is installed and through torchvision elsewhere; any other name is a
folder of images, `FOLDER/train/CLASS/*.png` and `FOLDER/test/CLASS/*.png` (or `val`). Needs neither torch nor
onnx unless torchvision has to download.
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .preprocessing import Preprocessing

Split = Literal["train", "test"]

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
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm"})

# Mean and standard deviation of the pixels of the training images, in [0, 1].
_STATISTICS = {"digits": (0.305, 0.376), "fashion-mnist": (0.286, 0.353)}
_FOLDER_STATISTICS = (0.449, 0.226)
_DIGITS_TEST_EVERY = 5


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Labelled images of one split.

    Attributes:
        images: uint8, [N, C, H, W].
        labels: int64, [N], indices into `class_names`.
        class_names: one name per class.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def first(self, count: int) -> ImageSet:
        """Return the first `count` images."""
        return ImageSet(images=self.images[:count], labels=self.labels[:count], class_names=self.class_names)


def load_images(name: str, split: Split = "test", *, shape: tuple[int, int, int] | None = None) -> ImageSet:
    """Load one split of a data set.

    Args:
        name: `digits`, `fashion-mnist`, or the path of a folder of images.
        split: `train` or `test`.
        shape: (channels, height, width) to which the images of a folder are brought; a folder's default is
            its first image's size in colour. The embedded sets have one shape each, and another is refused.

    Raises:
        DataError: the name is unknown, the folder or a package is missing, there are no images, or the shape
            does not fit.
    """
    if name == "digits":
        images = _digits(split)
    elif name == "fashion-mnist":
        images = _fashion_mnist(split)
    elif Path(name).is_dir():
        return _image_folder(Path(name), split, shape)
    else:
        raise DataError(f"unknown data set {name!r}: it is none of {sorted(_STATISTICS)}, and there is no such folder.")
    if shape is not None and images.images.shape[1:] != tuple(shape):
        raise DataError(
            f"data set {name!r} has images of shape {list(images.images.shape[1:])}, "
            f"but {list(shape)} is wanted; choose a network and a data set that fit."
        )
    return images


def preprocessing_for(name: str, images: ImageSet) -> Preprocessing:
    """Return the preprocessing of a data set, with its images' shape."""
    mean, std = _STATISTICS.get(name, _FOLDER_STATISTICS)
    channels, height, width = images.images.shape[1:]
    return Preprocessing.from_statistics((channels, height, width), mean, std)


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


def _fashion_mnist(split: Split) -> ImageSet:
    prefix = "train" if split == "train" else "t10k"
    if not FASHION_MNIST_FOLDER.is_dir():
        return _fashion_mnist_by_torchvision(split)
    images = _read_idx(FASHION_MNIST_FOLDER / f"{prefix}-images-idx3-ubyte.gz", dimensions=3)
    labels = _read_idx(FASHION_MNIST_FOLDER / f"{prefix}-labels-idx1-ubyte.gz", dimensions=1)
    return ImageSet(images=images[:, None], labels=labels.astype(np.int64), class_names=FASHION_MNIST_CLASSES)


def _fashion_mnist_by_torchvision(split: Split) -> ImageSet:
    try:
        from torchvision.datasets import FashionMNIST
    except ImportError as error:
        raise DataError(
            "data set 'fashion-mnist' needs Debian's package dataset-fashion-mnist, or torchvision to download "
            "it: pip install 'qil-deploy[train]'."
        ) from error
    try:
        data = FashionMNIST(Path.home() / ".cache" / "qil_deploy", train=split == "train", download=True)
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


def _image_folder(folder: Path, split: Split, shape: tuple[int, int, int] | None) -> ImageSet:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError("reading a folder of images needs Pillow: pip install pillow.") from error
    candidates = [folder / split] + ([folder / "val"] if split == "test" else [])
    root = next((candidate for candidate in candidates if candidate.is_dir()), None)
    if root is None:
        raise DataError(f"image folder {folder} has no subfolder {' or '.join(c.name for c in candidates)!s}.")
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((root / name).iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not files:
        raise DataError(
            f"image folder {root} holds no images; expected {root}/CLASS/IMAGE with one of {sorted(IMAGE_SUFFIXES)}."
        )
    arrays = []
    for path, _ in files:
        try:
            with Image.open(path) as image:
                if shape is None:
                    shape = (3, image.height, image.width)
                channels, height, width = shape
                fitted = image.convert("L" if channels == 1 else "RGB").resize((width, height))
        except OSError as error:
            raise DataError(f"{path} is not an image that can be read: {error}") from error
        arrays.append(np.atleast_3d(np.asarray(fitted, np.uint8)).transpose(2, 0, 1))
    return ImageSet(
        images=np.stack(arrays),
        labels=np.asarray([label for _, label in files], np.int64),
        class_names=tuple(classes),
    )
