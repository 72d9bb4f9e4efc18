"""Sliding windows over images: output sizes, padding, and the columns of an im2col product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Window:
    """A two-dimensional window, all entries (vertical, horizontal).

    Attributes:
        kernel: rows and columns of the window.
        strides: steps between windows.
        dilations: steps between the elements of one window.
        pads_begin: rows above and columns left of the image.
        pads_end: rows below and columns right of the image.
        ceil_mode: whether a last window that reaches past the padded image counts.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads_begin: tuple[int, int] = (0, 0)
    pads_end: tuple[int, int] = (0, 0)
    ceil_mode: bool = False

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns of the image that one window spans."""
        rows, columns = ((size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True))
        return rows, columns

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Count the windows over an image of `height` x `width`.

        In ceil mode a window that would start beyond image and leading padding is dropped, as in ONNX.

        Raises:
            ValueError: the window is larger than the padded image.
        """
        sizes = []
        for axis, size in enumerate((height, width)):
            stride, begin = self.strides[axis], self.pads_begin[axis]
            room = size + begin + self.pads_end[axis] - self.extent[axis]
            if room < 0:
                raise ValueError(
                    f"a window of {self.extent[0]}x{self.extent[1]} does not fit an image of "
                    f"{height}x{width} with pads {self.pads_begin} and {self.pads_end}"
                )
            count = room // stride + 1
            if self.ceil_mode and room % stride and count * stride < size + begin:
                count += 1
            sizes.append(count)
        return sizes[0], sizes[1]

    def count_inside(self, height: int, width: int) -> Array:
        """Count the elements of each window that lie inside the image: [OH, OW]."""
        counts = []
        for axis, (size, windows) in enumerate(zip((height, width), self.output_size(height, width), strict=True)):
            first = np.arange(windows)[:, None] * self.strides[axis] - self.pads_begin[axis]
            positions = first + np.arange(self.kernel[axis]) * self.dilations[axis]
            counts.append(((positions >= 0) & (positions < size)).sum(axis=1))
        return np.outer(counts[0], counts[1])


def pad_images(images: Array, window: Window, value: float) -> Array:
    """Pad [N, C, H, W] with `value` so that every window lies inside; the dtype stays."""
    pads = []
    for axis, (size, count) in enumerate(zip(images.shape[2:], window.output_size(*images.shape[2:]), strict=True)):
        reached = (count - 1) * window.strides[axis] + window.extent[axis]
        pads.append((window.pads_begin[axis], max(0, reached - size - window.pads_begin[axis])))
    if not np.any(pads):
        return images
    return np.pad(images, [(0, 0), (0, 0), *pads], constant_values=value)


def window_views(padded: Array, window: Window, output_size: Sequence[int]) -> Array:
    """View padded [A, B, H, W] as [A, B, kernel rows, kernel columns, output rows, output columns]."""
    views = np.lib.stride_tricks.sliding_window_view(padded, window.extent, axis=(2, 3))
    rows, columns = output_size
    views = views[:, :, :: window.strides[0], :: window.strides[1], :: window.dilations[0], :: window.dilations[1]]
    return views[:, :, :rows, :columns].transpose(0, 1, 4, 5, 2, 3)
