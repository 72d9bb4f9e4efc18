"""Top-1 accuracy, computed in one way: equal counts give equal floats, which can be compared exactly."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_NO_CLASS: Final = -1


def predicted_classes(logits: NDArray[Any]) -> NDArray[np.int64]:
    """Return the class of each image's largest logit (the first of equals), -1 where one is NaN; [N]."""
    return np.where(np.isnan(logits).any(axis=1), _NO_CLASS, logits.argmax(axis=1)).astype(np.int64)


def top1_fraction(right: int, images: int) -> float:
    """Return the share of images whose largest logit is that of their label, in [0, 1]."""
    return right / images


def top1_percent(right: int, images: int) -> float:
    """Return the same share in percent: `100 * (right / images)`; `100 * right / images` may differ in the last bit."""
    return 100.0 * top1_fraction(right, images)
