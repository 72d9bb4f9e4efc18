"""A set of images is uint8 pixels and one label for each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qil_deploy.datasets.image_set import ImageSet
from qil_deploy.errors import DataError

PIXELS, LABELS = np.zeros((4, 1, 2, 3), np.uint8), np.arange(4)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (PIXELS / np.float32(255), r"images are float32 of shape \[4, 1, 2, 3\]; give pixels before"),
        (torch.from_numpy(PIXELS), r"images are a Tensor; .* a NumPy array"),
        (PIXELS[:, 0], r"images are uint8 of shape \[4, 2, 3\]; .* \[N, C, H, W\]"),
        (PIXELS.tolist(), r"images are a list; give pixels"),
    ],
)
def test_images_are_pixels(images: Any, message: str) -> None:  # noqa: ANN401 - what callers may hand over
    with pytest.raises(DataError, match=message):
        ImageSet(images=images, labels=LABELS, class_names=("cat",))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:3], "labels are a ndarray of length 3, for 4 images"),
        (LABELS.tolist(), "labels are a list of length 4, for 4 images; give a NumPy array"),
    ],
)
def test_every_image_has_a_label(labels: Any, message: str) -> None:  # noqa: ANN401 - what callers may hand over
    with pytest.raises(DataError, match=message):
        ImageSet(images=PIXELS, labels=labels, class_names=("cat",))


def test_parts_and_batches_have_the_same_images() -> None:
    images = ImageSet(images=PIXELS + np.arange(4, dtype=np.uint8)[:, None, None, None], labels=LABELS, class_names=())
    parts = list(images.batches(3))
    assert [len(part) for part in parts] == [3, 1]
    np.testing.assert_array_equal(np.concatenate([part.images for part in parts]), images.images)
    np.testing.assert_array_equal(np.concatenate([part.labels for part in parts]), images.labels)
