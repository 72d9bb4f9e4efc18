"""A small U-Net that labels every pixel: trained in plain PyTorch, quantized to 4 bits, deployed and verified.

    python examples/segmentation.py

trains on drawn scenes for a few minutes on two cores, prints the mean IoU in float and at 4/4 bits and how many numbers
differ between ONNX Runtime, the integer reference and PyTorch (none), and writes `segmentation.onnx` and
`segmentation.png`: image, labels, float network, the file in ONNX Runtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scenes import CLASSES, COLOURS, Scenes, draw_scenes, write_rows
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy import Preprocessing, QuantConfig, calibrate, freeze, prepare
from qil_deploy.datasets import ImageSet
from qil_deploy.export import export_onnx
from qil_deploy.metrics import MeanIoU
from qil_deploy.runtime_tests import VerifyReport, verify
from qil_deploy.runtime_tests.exported_model import read_exported_model

NAMES = ("background", *CLASSES)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How large everything is."""

    size: int = 48
    train: int = 1500
    test: int = 300
    width: int = 12
    epochs: int = 16
    quantized_epochs: int = 6
    batch: int = 32


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Mean IoU in float and of the file, in [0, 1], and what `verify` reported."""

    float_iou: float
    quantized_iou: float
    report: VerifyReport


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Return two convolutions with their norms."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """Three levels down and up again, each level reading what the way down had found at its size."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.down = nn.ModuleList([block(3, width), block(width, 2 * width), block(2 * width, 4 * width)])
        self.bottom = block(4 * width, 4 * width)
        self.up = nn.ModuleList([block(8 * width, 2 * width), block(4 * width, width), block(2 * width, width)])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, 3, H, W] to one logit per class and pixel, [N, classes, H, W]."""
        found = []
        for down in self.down:
            x = down(x)
            found.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for up in self.up:
            x = up(torch.cat([F.interpolate(x, scale_factor=2), found.pop()], 1))
        logits: Tensor = self.head(x)
        return logits


def train(model: nn.Module, x: Tensor, labels: Tensor, epochs: int, rate: float, batch: int) -> None:
    """Train any model that maps images to maps of logits."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-4)
    steps = -(-len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=max(epochs * steps, 2))
    model.train()
    for epoch in range(epochs):
        losses = []
        for some in torch.randperm(len(x)).split(batch):
            if len(some) == 1:
                continue  # of which BatchNorm would have no variance
            loss = F.cross_entropy(model(x[some]), labels[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"  epoch {epoch + 1}: loss {np.mean(losses):.4f}")
    model.eval()


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, batch: int) -> np.ndarray:
    """Return the logits of all images."""
    return torch.cat([model(some) for some in x.split(batch)]).numpy()


def run(settings: Settings, folder: Path) -> Outcome:
    """Train, quantize, deploy, verify, and draw."""
    torch.manual_seed(0)
    shown, scenes = draw_scenes(settings.train, settings.size, 0), draw_scenes(settings.test, settings.size, 1)
    pixels = Preprocessing.from_statistics((3, settings.size, settings.size), mean=0.5, std=0.25)
    x, test = (torch.from_numpy(pixels.normalize(some.images)) for some in (shown, scenes))
    labels = torch.from_numpy(shown.labels)

    network = UNet(settings.width, len(NAMES))
    print("float")
    train(network, x, labels, settings.epochs, 4e-3, settings.batch)
    in_float = predict(network, test, settings.batch)
    metric = MeanIoU("logits")
    metric.add({"logits": in_float}, scenes.labels)

    model = prepare(network, QuantConfig(weight_bits=4, activation_bits=4), x[:1], input_grid=pixels)
    calibrate(model, x[:256].split(settings.batch))
    print("4-bit weights, 4-bit activations")
    train(model, x, labels, settings.quantized_epochs, 1e-3, settings.batch)
    frozen = freeze(model)
    path = folder / "segmentation.onnx"
    export_onnx(frozen, path, preprocessing=pixels, class_names=NAMES)

    def in_pytorch(images: np.ndarray) -> np.ndarray:
        return predict(frozen, torch.from_numpy(pixels.normalize(images)), settings.batch)

    images = ImageSet(images=scenes.images, labels=scenes.labels, class_names=NAMES)
    report = verify(path, images.batches(settings.batch), others={"frozen PyTorch": in_pytorch})
    draw(scenes, in_float, read_exported_model(path).onnx_predictor()(scenes.images[:8]), folder / "segmentation.png")
    return Outcome(float_iou=metric.value(), quantized_iou=report.reference_accuracy or 0.0, report=report)


def draw(scenes: Scenes, in_float: np.ndarray, quantized: np.ndarray, path: Path) -> None:
    """Draw the first scenes: image, labels, float network, the file in ONNX Runtime."""
    rows = []
    for index, logits in enumerate(quantized):
        image = scenes.images[index].transpose(1, 2, 0)
        maps = [scenes.labels[index], in_float[index].argmax(0), logits.argmax(0)]
        rows.append([image, *((image // 3 + COLOURS[labels] // 3 * 2).astype(np.uint8) for labels in maps)])
    write_rows(str(path), rows)


if __name__ == "__main__":
    outcome = run(Settings(), Path())
    print(f"mean IoU: float {100 * outcome.float_iou:.2f} %, 4/4 bits {100 * outcome.quantized_iou:.2f} %")
    for backend in outcome.report.backends:
        print(f"{backend.name}: {backend.differing_logits:,} numbers differ from the integer reference")
