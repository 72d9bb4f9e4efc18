"""Networks for the benchmarks to export, with random weights distributed like trained ones, and real images for them.

Neither has much effect on the measurements, since the time of integer and float arithmetic does not depend on the
values. But channels of unequal scale, negative BatchNorm slopes and images instead of noise exercise every step of the
export.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from qil_deploy.config import QuantConfig
from qil_deploy.datasets import load_images
from qil_deploy.network import calibrate, prepare
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.training.models import build_model

DATA = "fashion-mnist"
SHAPE = (3, 224, 224)
PREPROCESSING = Preprocessing.from_statistics(SHAPE, mean=0.286, std=0.353)  # of Fashion-MNIST's training images
CLASS_NAMES = tuple(f"class {index}" for index in range(1000))
BATCH_SIZE = 8


def colour_images(count: int, size: int = SHAPE[1]) -> NDArray[np.uint8]:
    """Return the first training images of Fashion-MNIST, enlarged bilinearly to uint8 [count, 3, size, size]."""
    gray = torch.from_numpy(load_images(DATA, "train").images[:count].copy()).float()
    enlarged = F.interpolate(gray, size=(size, size), mode="bilinear")
    colour: NDArray[np.uint8] = enlarged.round().to(torch.uint8).expand(-1, SHAPE[0], -1, -1).numpy()
    return colour


def normalized_batches(images: NDArray[np.uint8]) -> list[Tensor]:
    """Return normalised images, the networks' input: float32 [N, 3, 224, 224], in batches of `BATCH_SIZE`."""
    return list(torch.from_numpy(PREPROCESSING.normalize(images)).split(BATCH_SIZE))


def random_network(name: str, batches: list[Tensor], *, seed: int) -> nn.Module:
    """Build a network of `training.models.MODELS` with 1000 classes and weights distributed like trained ones."""
    torch.manual_seed(seed)
    return spread(build_model(name, {"in_channels": SHAPE[0], "num_classes": len(CLASS_NAMES)}), batches)


@torch.no_grad()
def spread(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    """Return a network in evaluation mode with random weights distributed like trained ones.

    Weights are normally distributed, with a magnitude that keeps activations in range and a different scale for each
    output channel. BatchNorm slopes lie between 0.5 and 1.5, one in twenty of them negative; BatchNorm statistics are
    computed from `batches`.
    """
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            scales = torch.randn(len(module.weight)).mul(0.25).exp()
            module.weight.mul_(scales.reshape(-1, *[1] * (module.weight.ndim - 1)))
    for norm in norms:
        norm.weight.uniform_(0.5, 1.5)
        norm.weight.mul_(torch.where(torch.rand(norm.num_features) < 0.05, -1.0, 1.0))
        norm.bias.normal_(0.0, 0.3)
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    for batch in batches:
        model(batch)
    return model.eval()


def quantized_network(model: nn.Module, config: QuantConfig, batches: list[Tensor]) -> fx.GraphModule:
    """Return a quantized copy of a network in evaluation mode, with intervals set from `batches`."""
    height, width = batches[0].shape[2:]
    grid = replace(PREPROCESSING, height=height, width=width)
    prepared = prepare(model, config, batches[0], input_grid=grid)
    calibrate(prepared, batches)
    prepared.eval()
    return prepared
