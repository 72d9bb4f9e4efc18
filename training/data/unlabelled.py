"""Images without labels, from some data set or noise, for a network that learns from another one."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from qil_deploy.datasets import ImageSet, load_images
from qil_deploy.integers import predictions
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.training.memory import require_memory
from qil_deploy.training.recipe_sections import NOISE, QuantizerOnlySection
from qil_deploy.training.teacher import Teacher

_NOISE_BYTES = 12  # per value, while noise is drawn and smoothed


def unlabelled_images(section: QuantizerOnlySection, teacher: Teacher, seed: int) -> ImageSet:
    """Return the images to learn from, in the shape of the network; the class of each is the float network's guess.

    Raises:
        DataError: the data set is unknown or missing, or its images cannot be brought to the network's channels.
    """
    preprocessing = teacher.info.preprocessing
    if section.images == NOISE:
        size = float(section.noise_images) * math.prod(preprocessing.shape) * _NOISE_BYTES
        require_memory(size, f"{section.noise_images:,} images of noise", "lower noise_images")
        images = noise_images(section.noise_images, preprocessing, blur=section.noise_blur, seed=seed)
    else:
        images = load_images(section.images, "train", preprocessing=preprocessing).images[: section.limit]
    return ImageSet(
        images=images,
        labels=predictions(teacher.model, images, preprocessing),
        class_names=teacher.info.class_names,
    )


def noise_images(count: int, preprocessing: Preprocessing, *, blur: float, seed: int) -> NDArray[np.uint8]:
    """Return Gaussian noise of mean 0 and deviation 1 in input space, put on (and cut to) the grid of uint8 pixels.

    Args:
        count: number of images.
        preprocessing: shape of an image, and the map from its pixels to input.
        blur: standard deviation, in pixels, of a Gaussian that smooths each image (around its edges) before it is
            scaled back to deviation 1; 0 leaves the noise white.
        seed: of the noise.

    Returns:
        uint8, [count, C, H, W].
    """
    x = np.random.default_rng(seed).standard_normal((count, *preprocessing.shape), np.float32)
    if blur > 0:
        for axis in (2, 3):
            x = _smoothed(x, axis, blur)
        x /= x.std((1, 2, 3), keepdims=True)
    factor, shift = (values.astype(np.float32)[:, None, None] for values in (preprocessing.factor, preprocessing.shift))
    pixels: NDArray[np.uint8] = np.clip(np.rint(x / factor + shift), 0, 255).astype(np.uint8)
    return pixels


def _smoothed(x: NDArray[np.float32], axis: int, deviation: float) -> NDArray[np.float32]:
    """Convolve one axis with a Gaussian, circularly: every pixel keeps the same deviation."""
    frequencies = np.fft.rfftfreq(x.shape[axis])
    response = np.exp(-2.0 * (np.pi * deviation * frequencies) ** 2)
    shape = [1] * x.ndim
    shape[axis] = len(response)
    spectrum = np.fft.rfft(x, axis=axis) * response.reshape(shape)
    return np.fft.irfft(spectrum, x.shape[axis], axis).astype(np.float32)
