"""Folders of images: `FOLDER/train/CLASS/...` and `FOLDER/test/CLASS/...` (or `val`), decoded when asked for.

Files are found as torchvision's ImageFolder finds them: classes in the order of their names, in each class every image
at any depth, by its suffix. A decoded image reaches the shape of the network as its `Preprocessing` says (`resize`,
`interpolation`), which is what the package of a pretrained network says; or, where that is silent, in one of two ways:

- `stretch`: resized to exactly that shape (Pillow's bicubic), whatever its proportions;
- `centre crop`: as networks on ImageNet are evaluated, the shorter side resized to 8/7 of the longer one wanted (256
  for 224; bilinear), then the middle cut out. The same bytes as torchvision's Resize and CenterCrop of a Pillow image.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from qil_deploy.errors import DataError
from qil_deploy.preprocessing import Preprocessing

from .decode import decode_image
from .image_set import ImageSet, Split

if TYPE_CHECKING:
    from PIL import Image

Fit = Literal["stretch", "centre crop"]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})


@dataclass(frozen=True, kw_only=True)
class ImageFolder:
    """The images of one split of a folder, not yet read.

    Attributes:
        root: the folder that holds the classes.
        files: paths below `root` in the file system's encoding, [N]. (An array, not a million strings: worker
            processes share its memory as long as nobody counts references in it.)
        labels: int64, [N], indices into `class_names`.
        class_names: one name per class.
        fit: how an image reaches the shape of the network.
        preprocessing: may define that instead.
    """

    root: Path
    files: NDArray[np.bytes_]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    fit: Fit = "stretch"
    preprocessing: Preprocessing | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def path(self, index: int) -> Path:
        """Return the path of one image."""
        return self.root / os.fsdecode(self.files[index])

    def decode(self, index: int, channels: int) -> Image.Image:
        """Return one image in grey (1 channel) or colour (3).

        Raises:
            DataError: the file is no image that can be read, or its numbers have no known range.
        """
        return decode_image(self.path(index), channels)

    def image(self, index: int, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        """Return one image as evaluation sees it: uint8, of `shape` (channels, height, width)."""
        return to_array(self.fit_to(self.decode(index, shape[0]), shape))

    def fit_to(self, image: Image.Image, shape: tuple[int, int, int]) -> Image.Image:
        """Resize and crop a decoded image to the height and width of `shape`, as `preprocessing` or `fit` says."""
        _, height, width = shape
        if self.preprocessing is not None and self.preprocessing.resize is not None:
            return resized_and_cut(image, self.preprocessing)
        return image.resize((width, height)) if self.fit == "stretch" else _centre_crop(image, height, width)

    def images(self, start: int, stop: int, shape: tuple[int, int, int]) -> ImageSet:
        """Return the images from `start` up to `stop`, decoded by as many threads as there are cores."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            arrays = list(pool.map(lambda index: self.image(index, shape), range(start, stop)))
        return ImageSet(
            images=np.stack(arrays) if arrays else np.empty((0, *shape), np.uint8),
            labels=self.labels[start:stop],
            class_names=self.class_names,
        )

    def default_shape(self) -> tuple[int, int, int]:
        """Return (3, 224, 224) if the centre is cropped, else the first image's size, in colour."""
        if self.fit == "centre crop":
            return (3, 224, 224)
        first = self.decode(0, 3)
        return (3, first.height, first.width)


def open_image_folder(folder: Path, split: Split, fit: Fit = "stretch") -> ImageFolder:
    """Find the images of one split of a folder.

    Args:
        folder: holds `train` and `test` (or `val`).
        split: which of them.
        fit: how an image reaches the shape of the network.

    Raises:
        DataError: Pillow or a subfolder is missing, there are no images, or a class has none to train on.
    """
    try:
        import PIL  # noqa: F401 - needed by what follows; better missed now than at the first image
    except ImportError as error:
        raise DataError("reading a folder of images needs Pillow: pip install pillow.") from error
    candidates = [folder / split] + ([folder / "val"] if split == "test" else [])
    root = next((candidate for candidate in candidates if candidate.is_dir()), None)
    if root is None:
        raise DataError(f"image folder {folder} has no subfolder {' or '.join(c.name for c in candidates)!s}.")
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    found = [_image_files(root, name) for name in classes]
    if not any(found):
        raise DataError(
            f"image folder {root} holds no images; expected {root}/CLASS/IMAGE with one of {sorted(IMAGE_SUFFIXES)}."
        )
    empty = [name for name, files in zip(classes, found, strict=True) if not files]
    if empty and split == "train":
        raise DataError(
            f"image folder {root} has classes without an image: {', '.join(empty)}; remove them or add images."
        )
    return ImageFolder(
        root=root,
        files=np.array([file for files in found for file in files]),
        labels=np.repeat(np.arange(len(classes)), [len(files) for files in found]),
        class_names=tuple(classes),
        fit=fit,
    )


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """Return an image in grey or colour as uint8 [C, H, W]."""
    return np.ascontiguousarray(np.atleast_3d(np.asarray(image, np.uint8)).transpose(2, 0, 1))


def _image_files(root: Path, class_name: str) -> list[bytes]:
    """List the images of a class, at any depth, below `root`."""
    files = []
    for folder, _, names in sorted(os.walk(root / class_name, followlinks=True)):
        below = Path(folder).relative_to(root)
        files += [os.fsencode(below / name) for name in sorted(names) if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    return files


def _centre_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resize the shorter side to 8/7 of the longer target side, and crop the centre."""
    size = _in_proportion(image, round(max(height, width) * 8 / 7))
    return _middle(_resize(image, size, "bilinear"), height, width)


def resized_and_cut(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resize to the size of a preprocessing, by its filter, and crop the centre."""
    wanted = preprocessing.resize or 0
    size = _in_proportion(image, wanted) if isinstance(wanted, int) else (wanted[1], wanted[0])
    resized = _resize(image, size, preprocessing.interpolation or "bicubic")
    return _middle(resized, preprocessing.height, preprocessing.width)


def _in_proportion(image: Image.Image, shorter: int) -> tuple[int, int]:
    """Return width and height of an image scaled to a given shorter side."""
    if image.width <= image.height:
        return (shorter, int(shorter * image.height / image.width))
    return (int(shorter * image.width / image.height), shorter)


def _resize(image: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    from PIL import Image

    return image.resize(size, Image.Resampling[interpolation.upper()])


def _middle(image: Image.Image, height: int, width: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
