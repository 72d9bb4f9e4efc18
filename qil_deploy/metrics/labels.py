"""Labels of boxes as one array, so that they are sliced and batched like any other labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

COLUMNS: Final = 5
NO_BOX: Final = -1.0


def pad_boxes(boxes: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """Return the boxes of some images as one array.

    Args:
        boxes: for each image [K, 5]: left, top, right, bottom in pixels, and the class.

    Returns:
        float32 [N, most, 5]; rows of class -1 fill up images with fewer boxes.
    """
    most = max((len(some) for some in boxes), default=0)
    padded = np.full((len(boxes), most, COLUMNS), NO_BOX, np.float32)
    for image, some in zip(padded, boxes, strict=True):
        image[: len(some)] = np.asarray(some, np.float32).reshape(-1, COLUMNS)
    return padded
