"""Resizing images in memory: exact, against fractions, PyTorch and Pillow."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from qil_deploy.datasets import load_images
from qil_deploy.datasets.resize import resize_images
from qil_deploy.errors import DataError


def in_fractions(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The module's formula for one image [H, W], pixel by pixel."""
    result = np.empty((height, width), np.uint8)

    def neighbours(new: int, new_size: int, old_size: int) -> list[tuple[int, Fraction]]:
        x = Fraction((2 * new + 1) * old_size, 2 * new_size) - Fraction(1, 2)
        x = min(max(x, Fraction(0)), Fraction(old_size - 1))
        low = floor(x)
        return [(low, 1 - (x - low)), (min(low + 1, old_size - 1), x - low)]

    for row in range(height):
        for column in range(width):
            value = sum(
                (
                    share_down * share_across * int(image[y, x])
                    for y, share_down in neighbours(row, height, image.shape[0])
                    for x, share_across in neighbours(column, width, image.shape[1])
                ),
                Fraction(0),
            )
            result[row, column] = floor(value + Fraction(1, 2))
    return result


sizes = st.integers(1, 9)


@given(old=st.tuples(sizes, sizes), new=st.tuples(sizes, sizes), seed=st.integers(0, 2**32 - 1))
def test_every_pixel_is_the_rounded_fraction(old: tuple[int, int], new: tuple[int, int], seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, old, np.uint8)
    resized = resize_images(image[None, None], (1, *new))
    np.testing.assert_array_equal(resized[0, 0], in_fractions(image, *new))


def test_it_is_pytorchs_bilinear_but_for_the_last_rounding(rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (4, 3, 28, 28), np.uint8)
    expected = F.interpolate(torch.from_numpy(images).double(), (64, 51), mode="bilinear").numpy()
    assert np.abs(resize_images(images, (3, 64, 51)) - expected).max() <= 0.5 + 1e-9


def test_more_images_than_are_resized_at_once(rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (200, 1, 4, 4), np.uint8)
    resized = resize_images(images, (2, 6, 5))
    for index in (0, 63, 64, 199):
        np.testing.assert_array_equal(resized[index : index + 1], resize_images(images[index : index + 1], (2, 6, 5)))


def test_nothing_overflows_where_images_are_large() -> None:
    for size in (1000, 1024, 1100):  # the first in 32 bits, the last two in 64
        white = np.full((1, 1, 3, 3), 255, np.uint8)
        assert resize_images(white, (1, size, size)).min() == 255


def test_the_shape_it_has_is_kept(rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (2, 1, 5, 7), np.uint8)
    assert resize_images(images, (1, 5, 7)) is images


def test_grey_is_repeated_and_colour_mixed_as_pillow_does(rng: np.random.Generator) -> None:
    colour = rng.integers(0, 256, (1, 3, 40, 50), np.uint8)
    gray = resize_images(colour, (1, 40, 50))
    pillow = np.asarray(Image.fromarray(colour[0].transpose(1, 2, 0)).convert("L"))
    np.testing.assert_array_equal(gray[0, 0], pillow)
    np.testing.assert_array_equal(resize_images(gray, (3, 40, 50)), np.repeat(gray, 3, 1))


def test_other_numbers_of_channels_are_refused() -> None:
    with pytest.raises(DataError, match="images of 3 channels cannot become ones of 2; choose 3, or 1 where it is 3"):
        resize_images(np.zeros((1, 3, 4, 4), np.uint8), (2, 4, 4))


def test_sets_in_memory_are_resized_when_asked() -> None:
    digits, large = load_images("digits"), load_images("digits", shape=(3, 32, 32))
    assert large.images.shape == (len(digits), 3, 32, 32)
    np.testing.assert_array_equal(large.labels, digits.labels)
    np.testing.assert_array_equal(large.images[5], resize_images(digits.images[5:6], (3, 32, 32))[0])
