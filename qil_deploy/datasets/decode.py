"""Decode one image file, stored in any form, to an upright 8-bit picture in grey or colour.

Images of more than 8 bits keep the upper 8, `v >> 8` for 16-bit grey: Pillow does so itself with 16-bit colour,
and so do OpenCV and torchvision, and an 8-bit picture that was stored as `257 v` comes back unchanged. Numbers of
unknown range (floats, 32-bit and signed integers) are refused: Pillow would clip them to 0..255 without a word.

Transparency is dropped, and the first of several frames taken, as Pillow's `convert` and torchvision do. The
orientation in the EXIF data is applied, as every viewer does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from qil_deploy.errors import DataError
from qil_deploy.untrusted_text import excerpt

if TYPE_CHECKING:
    from PIL import Image

_ORIENTATION: Final = 0x0112
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_UNSIGNED, _WHITE_IS_ZERO = 1, 0
# Formats whose 32-bit integers, as Pillow has them, are numbers from 0 to 65535.
_SIXTEEN_BITS_AS_32 = ("PNG", "PPM")
_REMEDY: Final = "save it as 8-bit or 16-bit unsigned integers, or remove it."


def decode_image(path: Path, channels: int) -> Image.Image:
    """Return an image file in grey (1 channel) or colour (3), 8 bits each, upright.

    Raises:
        DataError: the file is no image that can be read, or its numbers have no known range.
    """
    from PIL import Image

    if not path.is_file():  # reading a pipe would block
        raise DataError(f"{path} is no file; remove it from the folder.")
    try:
        # A stream, not a name: given a name, Pillow maps plain TIFFs, and mixes up the pixels of rotated ones.
        with path.open("rb") as stream, Image.open(stream) as image:
            image.load()
            orientation = int(image.getexif().get(_ORIENTATION, 1))
            return _upright(_eight_bits(image, path), orientation).convert("L" if channels == 1 else "RGB")
    except DataError:
        raise
    except Exception as error:  # what damaged files raise is up to the decoder of their format
        raise DataError(
            f"{path} is not an image that can be read: {excerpt(str(error))}; replace or remove it."
        ) from error


def _eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """Return an image with at most 8 bits per channel."""
    from PIL import Image

    if image.format == "TIFF" and set(_tag(image, _SAMPLE_FORMAT, _UNSIGNED)) != {_UNSIGNED} and image.mode != "F":
        raise DataError(f"{path} holds signed integers, and which of them is black is not known; {_REMEDY}")
    if image.mode == "F":
        raise DataError(f"{path} holds floats, and which of them is white is not known; {_REMEDY}")
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BITS_AS_32)
    if image.mode == "I" and not sixteen:
        raise DataError(f"{path} holds 32-bit integers, and which of them is white is not known; {_REMEDY}")
    if not sixteen:
        return image
    values = np.asarray(image).astype(np.int64)
    bits = _tag(image, _BITS, 16)[0] if image.format == "TIFF" else 16
    if values.size and not 0 <= int(values.min()) <= int(values.max()) < 1 << bits:
        raise DataError(f"{path} holds numbers from {values.min()} to {values.max()} in {bits} bits; {_REMEDY}")
    if image.format == "TIFF" and _tag(image, _PHOTOMETRIC, 1)[0] == _WHITE_IS_ZERO:  # Pillow inverts only 8 bits
        values = (1 << bits) - 1 - values
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8))


def _tag(image: Image.Image, number: int, default: int) -> tuple[int, ...]:
    """Return the values of a tag of a TIFF."""
    value = getattr(image, "tag_v2", {}).get(number, default)
    return tuple(value) if isinstance(value, tuple) else (int(value),)


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    """Rotate an image as its EXIF data say; Pillow does so for TIFF while loading."""
    from PIL import Image

    turns = Image.Transpose
    turn = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_270,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_90,
    }.get(orientation)
    return image if turn is None else image.transpose(turn)
