"""Resize uint8 images of a set in memory: bilinear, exact, the same bytes on every machine.

Along each axis, pixel `i` of `n` new ones lies at `x = (2 i + 1) m / (2 n) - 1/2` among the `m` old ones, clamped to
`[0, m - 1]` (half-pixel centres), and mixes the pixels `floor(x)` and `floor(x) + 1` with the weights `1 - frac(x)` and
`frac(x)`. All of it is a fraction with the denominator `4 n_height n_width`, which is rounded once, half up. Nothing
is averaged besides these four pixels: made smaller by more than a half, an image loses pixels.

One channel becomes several by repetition; three become one as in ITU-R BT.601, in the fixed point of Pillow's
mode L: `(19595 R + 38470 G + 7471 B + 32768) >> 16`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qil_deploy.errors import DataError

_IMAGES_AT_ONCE = 64


def resize_images(images: NDArray[np.uint8], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Convert uint8 images [N, C, H, W] to (channels, height, width).

    Raises:
        DataError: the channels can neither be repeated nor mixed into one.
    """
    if images.shape[1:] == shape:
        return images
    channels, height, width = shape
    result = np.empty((len(images), *shape), np.uint8)
    for start in range(0, len(images), _IMAGES_AT_ONCE):
        chosen = slice(start, start + _IMAGES_AT_ONCE)
        part = _to_channels(images[chosen], channels)
        result[chosen] = part if part.shape[2:] == (height, width) else _bilinear(part, height, width)
    return result


def _to_channels(images: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Repeat or mix channels; repeated channels are views, so that one copy is resized."""
    have = images.shape[1]
    if have in (channels, 1):
        return images
    if (have, channels) == (3, 1):
        red, green, blue = np.moveaxis(images.astype(np.uint32), 1, 0)
        gray: NDArray[np.uint32] = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
        return gray[:, None].astype(np.uint8)
    raise DataError(f"images of {have} channels cannot become ones of {channels}; choose {have}, or 1 where it is 3.")


def _bilinear(images: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize [N, C, H, W] to `height` x `width`."""
    top, bottom, down = _neighbours(images.shape[2], height)
    left, right, across = _neighbours(images.shape[3], width)
    denominator = 4 * height * width
    wide: type[np.signedinteger[Any]] = np.int32 if 513 * denominator < 2**31 else np.int64  # int32 is faster
    pixels = images.astype(wide)
    weights_down = down.astype(wide)[:, None]
    weights_across = across.astype(wide)
    rows = pixels[:, :, top] * (wide(2 * height) - weights_down) + pixels[:, :, bottom] * weights_down
    total = rows[:, :, :, left] * (wide(2 * width) - weights_across) + rows[:, :, :, right] * weights_across
    resized: NDArray[np.uint8] = ((2 * total + denominator) // (2 * denominator)).astype(np.uint8)
    return resized


def _neighbours(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return, for each new pixel, the old pixels it lies between and the second one's weight times `2 new`."""
    position = np.clip((2 * np.arange(new) + 1) * old - new, 0, (old - 1) * 2 * new)
    first, weight = np.divmod(position, 2 * new)
    return first, np.minimum(first + 1, old - 1), weight
