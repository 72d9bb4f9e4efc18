"""Conversion of a uint8 image to the network's input.

    x_c = (u_c - shift_c) * factor_c        u: uint8 pixel of channel c, x: float32 input of the network

The integer graph starts at the raw image: pixels are the codes of an 8-bit grid that all channels share,

    g = (u - zero_point) * scale

With one mean `mu` and one standard deviation `sigma` for all channels (of pixels in [0, 1]), `zero_point = rint(255 *
mu)`, `scale = 1 / (255 * sigma)`, and the grid is the map itself: `x = g`. With a mean and a deviation per channel the
map is exact, `shift_c = 255 * mu_c` and `factor_c = 1 / (255 * sigma_c)`; the grid is made from their averages, and

    x_c = a_c * g_c + b_c        a_c = factor_c / scale        b_c = (zero_point - shift_c) * factor_c

goes into the weights and biases of the layers that read the image (`qil_deploy.network.image_layers`). Defined once,
carried in the checkpoint and in the exported model, together with how a picture becomes an image of that shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import DataError

SMALLEST_SCALE, LARGEST_SCALE = 1e-30, 1e30  # float32, and so are its products with steps and multipliers
LARGEST_RATIO: Final = 2.0**16
"""Of a channel's deviation and the grid's, either way: what lies beyond is no image any more."""

ChannelOrder = Literal["RGB", "BGR"]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
CHANNEL_ORDERS: Final = ("RGB", "BGR")
INTERPOLATIONS: Final = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
"""Pillow's filters by name."""
_LARGEST_SIDE = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Shape of an image and the map from its pixels to the network's input.

    Attributes:
        channels, height, width: shape of one image.
        scale: step of the grid that pixels are on; float32-representable, from `SMALLEST_SCALE` to `LARGEST_SCALE`.
        zero_point: the grey level that represents 0 on that grid, in [0, 255].
        mean, std: of pixels in [0, 1], one per channel; None where the grid is the map (module docstring).
        channel_order: of a colour image; None if unknown.
        resize: what a picture is resized to before its middle of `height` x `width` is cut out: the length of its
            shorter side, or height and width. None if unknown.
        interpolation: Pillow's filter for that; None if unknown.
    """

    channels: int
    height: int
    width: int
    scale: float
    zero_point: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channel_order: ChannelOrder | None = None
    resize: int | tuple[int, int] | None = None
    interpolation: Interpolation | None = None

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
        if (self.mean is None) != (self.std is None):
            raise DataError("preprocessing has one of mean and std without the other; give both, or neither.")
        if self.mean is not None and self.std is not None:
            object.__setattr__(self, "mean", _per_channel("mean", self.mean, self.channels))
            object.__setattr__(self, "std", _per_channel("std", self.std, self.channels))
            self._check_statistics()
        self._check_pictures()

    def _check_statistics(self) -> None:
        for mean, std in zip(self.mean or (), self.std or (), strict=True):
            _require_statistics(mean, std)
            if not 1 / LARGEST_RATIO <= 255.0 * std * self.scale <= LARGEST_RATIO:
                raise DataError(
                    f"preprocessing has std {std:.6g} in one channel, where pixels are on a grid of scale "
                    f"{self.scale:.6g}, as for std {1 / (255.0 * self.scale):.6g}; deviations may differ by a factor "
                    f"of {LARGEST_RATIO:.0f} at most."
                )

    def _check_pictures(self) -> None:
        """Check the settings for converting pictures to images."""
        if self.channel_order is not None and (self.channel_order not in CHANNEL_ORDERS or self.channels != 3):
            raise DataError(
                f"preprocessing channel_order is {self.channel_order!r}, of images of {self.channels} channels; known "
                f"are {', '.join(CHANNEL_ORDERS)}, of three."
            )
        if self.interpolation is not None and self.interpolation not in INTERPOLATIONS:
            raise DataError(
                f"preprocessing interpolation is {self.interpolation!r}; known are {', '.join(INTERPOLATIONS)}."
            )
        if self.resize is None:
            return
        sides = tuple(self.resize) if isinstance(self.resize, Sequence) else (self.resize,)
        wanted = (self.height, self.width) if isinstance(self.resize, Sequence) else (min(self.height, self.width),)
        if len(sides) != len(wanted) or not all(
            type(side) is int and least <= side <= _LARGEST_SIDE for side, least in zip(sides, wanted, strict=True)
        ):
            raise DataError(
                f"preprocessing resize is {self.resize!r}; it must be the length of the shorter side, or height and "
                f"width, and no less than the {self.height}x{self.width} pixels that are cut out."
            )
        if isinstance(self.resize, Sequence):
            object.__setattr__(self, "resize", sides)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return (self.channels, self.height, self.width)

    @property
    def is_per_channel(self) -> bool:
        """Whether pixels are normalised by statistics per channel, instead of scale and zero point."""
        return self.mean is not None

    @property
    def shift(self) -> NDArray[np.float64]:
        """Value subtracted from the pixels of each channel, [channels]."""
        values = self.zero_point if self.mean is None else 255.0 * np.array(self.mean)
        return np.broadcast_to(np.float64(values), self.channels)

    @property
    def factor(self) -> NDArray[np.float64]:
        """Factor applied after the shift, [channels]."""
        values = self.scale if self.std is None else 1.0 / (255.0 * np.array(self.std))
        return np.broadcast_to(np.float64(values), self.channels)

    @property
    def input_range(self) -> tuple[float, float]:
        """The smallest and the largest value that a pixel of any channel is normalised to."""
        shift, factor = self.shift.astype(np.float32), self.factor.astype(np.float32)
        return float(((0 - shift) * factor).min()), float(((255 - shift) * factor).max())

    @classmethod
    def from_statistics(
        cls, shape: tuple[int, int, int], mean: float | Sequence[float], std: float | Sequence[float]
    ) -> Preprocessing:
        """Subtract `mean` and divide by `std`, both of pixels in [0, 1].

        Args:
            shape: (channels, height, width).
            mean, std: two numbers for all channels, of which `255 * mean` is rounded to a whole grey level; or one
                number per channel, as torchvision's `Normalize` takes them, of which nothing is rounded.

        Raises:
            DataError: another shape, a mean outside [0, 1], a deviation that is not positive and finite, or another
                number of either than of channels.
        """
        if len(shape) != 3:
            raise DataError(f"shape is {tuple(shape)}; give (channels, height, width).")
        channels, height, width = shape
        if isinstance(mean, float | int | np.number) and isinstance(std, float | int | np.number):
            _require_statistics(float(mean), float(std))
            return cls(
                channels=channels,
                height=height,
                width=width,
                scale=1.0 / (255.0 * std),
                zero_point=int(np.rint(255.0 * mean)),
            )
        means, deviations = _per_channel("mean", mean, channels), _per_channel("std", std, channels)
        for statistics in zip(means, deviations, strict=True):
            _require_statistics(*statistics)
        return cls(
            channels=channels,
            height=height,
            width=width,
            scale=channels / (255.0 * math.fsum(deviations)),
            zero_point=int(np.rint(255.0 * math.fsum(means) / channels)),
            mean=means,
            std=deviations,
        )

    @classmethod
    def from_timm(cls, source: object, size: int | tuple[int, int] | None = None) -> Preprocessing:
        """Return the preprocessing of a network of timm.

        Args:
            source: a network from `timm.create_model`, or its `pretrained_cfg`.
            size: of an image, both sides or (height, width), where it is not the network's own; pictures are resized
                in proportion.

        Raises:
            DataError: neither of these, or without mean and deviation.
        """
        found = getattr(source, "pretrained_cfg", source)
        channels, *own_size = _entry(found, "input_size", "timm") if size is None else (None, *_sides(size))
        mean, std = _entry(found, "mean", "timm"), _entry(found, "std", "timm")
        shape = (channels or len(mean), *own_size)
        share, mode = _entry(found, "crop_pct", "timm", None), _entry(found, "crop_mode", "timm", "center")
        resize: int | tuple[int, int] | None = None
        if share:
            sides = [math.floor(side / share) for side in own_size]
            if mode == "squash":
                resize = (sides[0], sides[1])
            elif mode == "center" and sides[0] == sides[1]:
                resize = sides[0]
        filter_name = _entry(found, "interpolation", "timm", None)
        return cls.from_statistics(shape, mean, std)._of_pictures(resize, filter_name)

    @classmethod
    def from_torchvision(cls, weights: object, size: int | tuple[int, int] | None = None) -> Preprocessing:
        """Return the preprocessing of a network of torchvision.

        Args:
            weights: such as `ResNet18_Weights.DEFAULT`, or what its `transforms()` returns.
            size: of an image, both sides or (height, width), where it is not that of the weights, or they have none (as
                for segmentation); pictures are resized in proportion.

        Raises:
            DataError: neither of these, without mean and deviation, or without a size.
        """
        make = getattr(weights, "transforms", None)
        found = make() if callable(make) else weights
        mean, std = _entry(found, "mean", "torchvision"), _entry(found, "std", "torchvision")
        crop, resized = (_entry(found, name, "torchvision", None) for name in ("crop_size", "resize_size"))
        if size is None and not crop:
            raise DataError("these weights of torchvision take images of any size; say which: size=(height, width).")
        height, width = _sides(crop) if size is None else _sides(size)
        resize = None
        if crop and resized and len(resized) == 1 and height == width:
            resize = round(height * resized[0] / _sides(crop)[0])
        interpolation = _entry(found, "interpolation", "torchvision", None)
        filter_name = getattr(interpolation, "value", interpolation)
        return cls.from_statistics((len(mean), height, width), mean, std)._of_pictures(resize, filter_name)

    def _of_pictures(self, resize: int | tuple[int, int] | None, interpolation: object) -> Preprocessing:
        """Return the same with a package's settings for pictures; the images of these packages are RGB."""
        sides = resize if isinstance(resize, tuple) else (resize or 0,) * 2
        fits = sides[0] >= self.height and sides[1] >= self.width
        return replace(
            self,
            channel_order="RGB" if self.channels == 3 else None,
            resize=resize if fits else None,
            interpolation=next((name for name in INTERPOLATIONS if name == interpolation), None),
        )

    @classmethod
    def from_metadata(cls, content: Mapping[str, Any]) -> Preprocessing:
        """Return the preprocessing stored by `metadata`, in this version or an earlier one.

        Raises:
            KeyError: an entry that every version wrote is missing.
            DataError: a value that it cannot have.
        """
        optional: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name in ("mean", "std", "channel_order", "resize", "interpolation")
            if (value := content.get(name)) is not None
        }
        return cls(
            channels=content["channels"],
            height=content["height"],
            width=content["width"],
            scale=content["scale"],
            zero_point=content["zero_point"],
            **optional,
        )

    def metadata(self) -> dict[str, Any]:
        """Return all settings that were given, for JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}

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
        shift, factor = (values.astype(np.float32)[:, None, None] for values in (self.shift, self.factor))
        return (images.astype(np.float32) - shift) * factor


_MISSING = object()


def _entry(source: object, name: str, package: str, default: object = _MISSING) -> Any:  # noqa: ANN401 - a package's own
    """Return an entry of a dictionary or an attribute, the forms in which packages describe their networks.

    Raises:
        DataError: it is missing, and there is no default.
    """
    found = source.get(name, default) if isinstance(source, Mapping) else getattr(source, name, default)
    if found is _MISSING or (found is None and default is _MISSING):
        raise DataError(
            f"a {type(source).__name__} has no {name!r}, unlike the descriptions of pretrained networks in {package}; "
            "call Preprocessing.from_statistics with the mean and std that the network was trained with."
        )
    return found


def _sides(size: int | Sequence[int]) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) not in (1, 2) or not all(isinstance(side, int) for side in sides):
        raise DataError(f"size is {size!r}; give the length of both sides, or (height, width).")
    return sides[0], sides[-1]


def _require_statistics(mean: float, std: float) -> None:
    if not (0 <= mean <= 1 and 0 < std < np.inf):
        raise DataError(
            f"mean {mean} and std {std} are no statistics of pixels in [0, 1]; give means in [0, 1] and positive "
            "deviations: one of each, or one per channel."
        )


def _per_channel(name: str, values: object, channels: int) -> tuple[float, ...]:
    """Return one number per channel, from one number or as many as there are channels."""
    numbers = [values] * channels if isinstance(values, float | int | np.number) else values
    try:
        result = tuple(float(number) for number in numbers)  # type: ignore[attr-defined] # or it fails
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{name} is {values!r}; give a number, or one per channel.") from error
    if isinstance(values, str | bytes) or len(result) != channels:
        raise DataError(f"{name} has {len(result)} numbers, but images have {channels} channels; give one per channel.")
    return result
