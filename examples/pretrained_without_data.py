"""A pretrained network as a 4-bit ONNX file, without its training data and without training.

    python examples/pretrained_without_data.py

Intervals and one output scale per layer are set by least squares on noise; weights and BatchNorm stay bit for bit.
Images that the network was made for do better than noise, and training at 3 bits and fewer better still
(docs/training-without-data.md).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn

from qil_deploy import Preprocessing, QuantConfig, calibrate, prepare
from qil_deploy.export import ExportResult, export_onnx
from qil_deploy.runtime_tests.golden import write_golden


def smooth_noise(count: int, shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Return uint8 images [count, C, H, W] whose neighbouring pixels are alike, as those of photographs are."""
    channels, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, channels, -(-height // 8), -(-width // 8), generator=generator)
    noise = nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    return (128 + 50 * noise).clamp(0, 255).round().to(torch.uint8).numpy()


def quantize(network: nn.Module, images: np.ndarray, class_names: list[str], path: Path) -> ExportResult:
    """Quantize `network` to 4 bits on `images` [N, C, H, W], and write the model and golden vectors of two of them."""
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    pixels = Preprocessing.from_torchvision(weights, images.shape[2:])
    x = torch.from_numpy(pixels.normalize(images))
    config = QuantConfig(weight_bits=4, activation_bits=4, output_scales="all")
    model = prepare(network, config, x[:1], input_grid=pixels)
    calibrate(model, x.split(16))
    written = export_onnx(model, path, preprocessing=pixels, class_names=class_names)
    write_golden(path, images[:2], "noise", path.with_suffix(".golden.npz"))
    return written


if __name__ == "__main__":
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    network = torchvision.models.resnet18(weights=weights)
    quantize(network, smooth_noise(64, (3, 224, 224)), weights.meta["categories"], Path("resnet18_w4a4.onnx"))
