"""What the benchmarks export: networks with random weights that spread like trained ones, and real images for them.

Neither changes what is measured much, since integer and float arithmetic take their time whatever the values are; but
channels of unequal scale, negative BatchNorm slopes and images instead of noise keep every step of the export awake.
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
    """Return images as the networks see them: float32 [N, 3, 224, 224], `BATCH_SIZE` at a time."""
    return list(torch.from_numpy(PREPROCESSING.normalize(images)).split(BATCH_SIZE))


def random_network(name: str, batches: list[Tensor], *, seed: int) -> nn.Module:
    """Build a network of `training.models.MODELS` with 1000 classes and weights that spread like trained ones."""
    torch.manual_seed(seed)
    return spread(build_model(name, {"in_channels": SHAPE[0], "num_classes": len(CLASS_NAMES)}), batches)


@torch.no_grad()
def spread(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    """Return a network in evaluation mode, given weights at random that spread like trained ones.

    Weights are normal, of a size that keeps activations in range, each output channel with a scale of its own;
    BatchNorm slopes lie between 0.5 and 1.5, one in twenty of them negative; its statistics are those of `batches`.
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
    """Return a quantized copy of a network, its intervals set from `batches`, in evaluation mode."""
    height, width = batches[0].shape[2:]
    grid = replace(PREPROCESSING, height=height, width=width)
    prepared = prepare(model, config, batches[0], input_grid=grid)
    calibrate(prepared, batches)
    prepared.eval()
    return prepared
