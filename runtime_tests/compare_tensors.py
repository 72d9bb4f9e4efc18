"""Compare two tensors, image by image: number and size of differences, and the first one's place.

Two numbers are equal when they are the same number of the same type: no tolerance, and NaN equals nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_MAX_INDICES: Final = 5


@dataclass(frozen=True, kw_only=True)
class TensorDifference:
    """Differences in one tensor.

    Attributes:
        elements: how many it should have.
        differing: how many of them differ; all if shape or type do.
        largest_step: largest difference that is a number, in codes (or logits).
        measured: whether every difference is a number: shape and type are the same, and nothing is NaN or infinite.
        indices: positions of the first elements that differ, the image first; none if shape or type differ.
    """

    elements: int
    differing: int = 0
    largest_step: float = 0.0
    measured: bool = True
    indices: tuple[tuple[int, ...], ...] = ()

    def __add__(self, other: TensorDifference) -> TensorDifference:
        """Return the differences in these images and some more."""
        return TensorDifference(
            elements=self.elements + other.elements,
            differing=self.differing + other.differing,
            largest_step=max(self.largest_step, other.largest_step),
            measured=self.measured and other.measured,
            indices=(*self.indices, *other.indices)[:_MAX_INDICES],
        )


def compare_tensors(found: NDArray[Any], expected: NDArray[Any], images: Sequence[int]) -> TensorDifference:
    """Compare a tensor of some images with its expected value.

    Args:
        found, expected: [N, ...].
        images: names of the N images in `indices`, such as their indices in a data set.
    """
    if found.shape != expected.shape or found.dtype != expected.dtype:
        elements = max(expected.size, 1)
        return TensorDifference(elements=elements, differing=elements, measured=False)
    wrong = found != expected
    if not wrong.any():
        return TensorDifference(elements=expected.size)
    with np.errstate(invalid="ignore"):
        steps = np.abs(found[wrong].astype(np.float64) - expected[wrong].astype(np.float64))
    numbers = np.isfinite(steps)
    return TensorDifference(
        elements=expected.size,
        differing=int(wrong.sum()),
        largest_step=float(steps[numbers].max(initial=0.0)),
        measured=bool(numbers.all()),
        indices=tuple((images[at], *map(int, rest)) for at, *rest in np.argwhere(wrong)[:_MAX_INDICES]),
    )


def digest_bytes(tensor: NDArray[Any]) -> bytes:
    """Return the bytes for a tensor's digest: its elements in C order, with 0 in place of -0, which is equal."""
    canonical = tensor + tensor.dtype.type(0) if tensor.dtype.kind == "f" else tensor
    return np.ascontiguousarray(canonical).tobytes()
