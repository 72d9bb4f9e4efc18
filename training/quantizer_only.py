"""Quantization without the training data: intervals and output scales learned on other, unlabelled images.

Weights, and BatchNorm with its statistics, stay those of a trained float network, bit for bit. What is learned are the
intervals, the steps of 8-bit ranges, one output scale per layer, and the exponents of weight transformers where the
recipe asks for them. They are led by the float network on the same images: with its logits `f` and those of the
quantized network, `g`, the loss is one of

    squared error    mean over images and classes of (f - g)**2
    divergence       T**2 * mean over images of sum_k p_k * log(p_k / q_k)       p = softmax(f / T), q = softmax(g / T)

(Hinton et al. 2015, section 2; T is the temperature). Labels are neither known nor read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy.checkpoint import CheckpointInfo, load_model
from qil_deploy.datasets import ImageSet, load_images
from qil_deploy.errors import CheckpointError, ConfigError
from qil_deploy.integers import predictions
from qil_deploy.network import AveragingConv2d, QuantConv2d, QuantLinear
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import interval_parameters

from .memory import require_memory
from .models import model_builder
from .recipe import NOISE, OptimizerSection, QuantizerOnlySection, Recipe

_NOISE_BYTES = 12  # per value, while noise is drawn and smoothed


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The float network that is quantized.

    Attributes:
        checkpoint: its file.
        info: what the file says about it.
        model: in evaluation mode, without gradients.
    """

    checkpoint: Path
    info: CheckpointInfo
    model: nn.Module


def load_teacher(section: QuantizerOnlySection, recipe: Recipe) -> Teacher:
    """Read the float checkpoint that a recipe quantizes.

    Raises:
        CheckpointError: it is missing, damaged, not a float one, or of another network or data set than the recipe's.
    """
    path = Path(section.weights)
    info, model = load_model(path, model_builder(recipe.model.name))
    if info.kind != "float":
        raise CheckpointError(f"{path} is a {info.kind} checkpoint; quantizer_only.weights must name a float one.")
    found = {"model": info.model_name, "width": info.model_arguments.get("width"), "data": info.data}
    wanted = {"model": recipe.model.name, "width": recipe.model.width or found["width"], "data": recipe.data}
    differing = [key for key, value in wanted.items() if found[key] != value]
    if differing:
        key = differing[0]
        raise CheckpointError(
            f"{path} has {key} {found[key]!r}, but the recipe {wanted[key]!r}; name a checkpoint of the recipe's "
            "network and data set."
        )
    return Teacher(checkpoint=path, info=info, model=model.requires_grad_(False))


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
        images = load_images(section.images, "train", shape=preprocessing.shape).images[: section.limit]
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
        blur: standard deviation, in pixels, of a Gaussian that each image is smoothed with (around its edges) before
            it is brought back to deviation 1; 0 leaves the noise white.
        seed: of the noise.

    Returns:
        uint8, [count, C, H, W].
    """
    x = np.random.default_rng(seed).standard_normal((count, *preprocessing.shape), np.float32)
    if blur > 0:
        for axis in (2, 3):
            x = _smoothed(x, axis, blur)
        x /= x.std((1, 2, 3), keepdims=True)
    pixels: NDArray[np.uint8] = np.clip(np.rint(x / preprocessing.scale + preprocessing.zero_point), 0, 255).astype(
        np.uint8
    )
    return pixels


def _smoothed(x: NDArray[np.float32], axis: int, deviation: float) -> NDArray[np.float32]:
    """Convolve one axis with a Gaussian, circularly: every pixel keeps the same deviation."""
    frequencies = np.fft.rfftfreq(x.shape[axis])
    response = np.exp(-2.0 * (np.pi * deviation * frequencies) ** 2)
    shape = [1] * x.ndim
    shape[axis] = len(response)
    spectrum = np.fft.rfft(x, axis=axis) * response.reshape(shape)
    return np.fft.irfft(spectrum, x.shape[axis], axis).astype(np.float32)


def quantizer_optimizers(model: nn.Module, section: OptimizerSection) -> list[torch.optim.Optimizer]:
    """Let gradients reach quantizers and output scales only; return the Adam that trains them.

    Output scales are dimensionless like interval parameters (decision 0009) and have their rate.

    Raises:
        ConfigError: there are none.
    """
    learned = interval_parameters(model)
    for module in model.modules():
        scale = module.log_output_scale if isinstance(module, QuantConv2d | QuantLinear) else None
        if scale is not None and not isinstance(module, AveragingConv2d):
            learned.append(scale)
    if not learned:
        raise ConfigError("there is nothing to train: the model has no quantizer whose interval could be learned.")
    model.requires_grad_(False)
    for parameter in learned:
        parameter.requires_grad_(True)
    return [torch.optim.Adam(learned, lr=section.interval_learning_rate)]


class TeacherLoss:
    """Loss against the float network's logits on the same images (module docstring); labels play no part."""

    def __init__(self, teacher: nn.Module, section: QuantizerOnlySection) -> None:
        self.teacher = teacher
        self.section = section

    def __call__(self, logits: Tensor, x: Tensor, _labels: Tensor) -> Tensor:
        """Return the loss of one batch, a scalar."""
        with torch.no_grad():
            expected = self.teacher(x.clone())  # whose first layer may write in place
        if self.section.loss == "squared_error":
            return F.mse_loss(logits, expected)
        temperature = self.section.temperature
        p, q = (F.log_softmax(values / temperature, 1) for values in (expected, logits))
        return temperature**2 * F.kl_div(q, p, reduction="batchmean", log_target=True)
