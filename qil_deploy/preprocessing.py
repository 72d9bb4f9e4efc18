"""How a uint8 image becomes what the network sees: one scale and one zero point for all channels.

    x = (u - zero_point) * scale        u: uint8 pixel, x: float32 input of the network

With mean `mu` and standard deviation `sigma` of pixels in [0, 1], `zero_point = rint(255 * mu)` and
`scale = 1 / (255 * sigma)`. The zero point is an integer so that a uint8 image is the code of an 8-bit
quantizer already, and the integer graph starts at the raw image. Defined once, carried in the checkpoint and
in the exported model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import DataError

SMALLEST_SCALE, LARGEST_SCALE = 1e-30, 1e30  # float32, and so are its products with steps and multipliers


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Shape of an image and the affine map from its pixels to the network's input.

    Attributes:
        channels, height, width: shape of one image.
        scale: step of one grey level in the network's input; float32-representable, from `SMALLEST_SCALE` to
            `LARGEST_SCALE`.
        zero_point: the grey level that maps to 0, in [0, 255].
    """

    channels: int
    height: int
    width: int
    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        """Check the ranges and round the scale to float32, the type it has at run time."""
        for name in ("channels", "height", "width", "zero_point"):
            if not isinstance(getattr(self, name), int | np.integer):
                raise DataError(f"preprocessing {name} is {getattr(self, name)!r}; it must be a whole number.")
        if min(self.channels, self.height, self.width) < 1:
            raise DataError(f"an image of shape {self.shape} has no pixels; every dimension must be at least 1.")
        if not SMALLEST_SCALE <= self.scale <= LARGEST_SCALE:
            raise DataError(
                f"preprocessing scale is {self.scale}; it must be positive and finite, from {SMALLEST_SCALE:g} to "
                f"{LARGEST_SCALE:g}."
            )
        if not 0 <= self.zero_point <= 255:
            raise DataError(f"preprocessing zero point is {self.zero_point}; it must be in 0..255.")
        object.__setattr__(self, "scale", float(np.float32(self.scale)))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return (self.channels, self.height, self.width)

    @classmethod
    def from_statistics(cls, shape: tuple[int, int, int], mean: float, std: float) -> Preprocessing:
        """Subtract `mean` and divide by `std` (of pixels in [0, 1]), on the uint8 grid.

        Raises:
            DataError: a mean outside [0, 1], or a deviation that is not positive and finite.
        """
        if not (0 <= mean <= 1 and 0 < std < np.inf):
            raise DataError(
                f"mean {mean} and std {std} are no statistics of pixels in [0, 1]; give one mean in [0, 1] and one "
                "positive std for all channels."
            )
        channels, height, width = shape
        return cls(
            channels=channels,
            height=height,
            width=width,
            scale=1.0 / (255.0 * std),
            zero_point=int(np.rint(255.0 * mean)),
        )

    def check(self, images: NDArray[np.uint8]) -> None:
        """Raise DataError unless `images` is uint8 of shape [N, channels, height, width]."""
        if not isinstance(images, np.ndarray):
            raise DataError(
                f"images are a {type(images).__name__}; give a NumPy array of uint8 (of a tensor: .numpy())."
            )
        if images.dtype != np.uint8 or images.shape[1:] != self.shape:
            raise DataError(
                f"images are {images.dtype} of shape {list(images.shape)}; the network takes uint8 of shape "
                f"[N, {self.channels}, {self.height}, {self.width}]."
            )

    def normalize(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 images [N, C, H, W] to the network's float32 input of the same shape."""
        self.check(images)
        return (images.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)
