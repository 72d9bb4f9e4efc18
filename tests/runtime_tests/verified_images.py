"""Verification of images in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qil_deploy.datasets import ImageSet
from qil_deploy.runtime_tests import VerifyReport
from qil_deploy.runtime_tests import verify as verify_batches

WriteModel = Callable[..., Path]
Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Logits = NDArray[np.float32]

SCALE, ZERO_POINT = np.float32(0.013), np.float32(77)


def verify(
    path: Path,
    images: Images,
    labels: Labels,
    *,
    batch_size: int = 250,
    **options: Any,  # noqa: ANN401 - those of the function
) -> VerifyReport:
    """Verify with images in memory."""
    data = ImageSet(images=images, labels=labels, class_names=("cat", "dog", "fox", "hen", "owl"))
    return verify_batches(path, data.batches(batch_size), **options)
