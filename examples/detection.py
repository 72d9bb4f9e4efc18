"""A one-stage detector with SiLU and three outputs: trained in plain PyTorch, quantized to 4 bits, deployed, verified.

    python examples/detection.py

trains on drawn scenes for some minutes on two cores, prints the average precision at an IoU of 0.5 in float and at 4/4
bits and how many numbers differ between ONNX Runtime, the integer reference and PyTorch (none), and writes
`detection.onnx`, which says itself how boxes stand in its outputs, and `detection.png`: labels, float network, the file
in ONNX Runtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from scenes import CLASSES, COLOURS, Scenes, draw_scenes, write_rows
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy import Preprocessing, QuantConfig, calibrate, freeze, prepare
from qil_deploy.datasets import ImageSet
from qil_deploy.export import export_onnx
from qil_deploy.metrics import AveragePrecision, BoxDecoder, Detections, pad_boxes
from qil_deploy.runtime_tests import VerifyReport, verify
from qil_deploy.runtime_tests.exported_model import read_exported_model

STRIDES = (4, 8, 16)
LARGEST = (20, 36, 10**6)
"""The longest side of the boxes that each output is for, in pixels."""
DECODER = BoxDecoder(outputs=("near", "middle", "far"), strides=STRIDES, classes=len(CLASSES))
SHOWN = 0.4
"""The lowest score of a box that is drawn."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How large everything is."""

    size: int = 64
    train: int = 2000
    test: int = 300
    width: int = 16
    epochs: int = 24
    quantized_epochs: int = 8
    batch: int = 32


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Average precision in float and of the file, in [0, 1], and what `verify` reported."""

    float_ap: float
    quantized_ap: float
    report: VerifyReport


def layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution, its norm and its activation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()
    )


class Detector(nn.Module):
    """Down to a sixteenth, up again to a quarter, and one head for each of three sizes of boxes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(layer(3, width, 2), layer(width, width))
        self.quarter = nn.Sequential(layer(width, 2 * width, 2), layer(2 * width, 2 * width))
        self.eighth = nn.Sequential(layer(2 * width, 3 * width, 2), layer(3 * width, 3 * width))
        self.sixteenth = nn.Sequential(layer(3 * width, 4 * width, 2), layer(4 * width, 3 * width))
        self.to_eighth, self.to_quarter = layer(6 * width, 2 * width), layer(4 * width, 2 * width)
        self.near, self.middle, self.far = (
            nn.Sequential(layer(channels, 2 * width), nn.Conv2d(2 * width, 4 + len(CLASSES), 1))
            for channels in (2 * width, 2 * width, 3 * width)
        )
        for name, bias in self.named_parameters():
            if name in ("near.1.bias", "middle.1.bias", "far.1.bias"):
                nn.init.constant_(bias[4:], -3.0)  # most cells hold nothing

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images to distances and classes of the boxes around every cell, [N, 4 + classes, H, W]."""
        quarter = self.quarter(self.stem(x))
        eighth = self.eighth(quarter)
        far = self.sixteenth(eighth)
        middle = self.to_eighth(torch.cat([eighth, F.interpolate(far, scale_factor=2)], 1))
        near = self.to_quarter(torch.cat([quarter, F.interpolate(middle, scale_factor=2)], 1))
        return {"near": self.near(near), "middle": self.middle(middle), "far": self.far(far)}


def targets(boxes: list[np.ndarray], size: int) -> dict[str, Tensor]:
    """Return what the outputs should be, [N, 4 + classes, H, W] each; classes are 1 around the middle of a box."""
    found = {
        name: np.zeros((len(boxes), 4 + len(CLASSES), size // stride, size // stride), np.float32)
        for name, stride in zip(DECODER.outputs, STRIDES, strict=True)
    }
    for image, some in enumerate(boxes):
        for left, top, right, bottom, cls in some:
            index = next(i for i, largest in enumerate(LARGEST) if max(right - left, bottom - top) <= largest)
            name, stride = DECODER.outputs[index], STRIDES[index]
            y, x = (np.mgrid[: size // stride, : size // stride] + 0.5) * stride
            reach = 1.01 * stride
            near = (np.abs(x - (left + right) / 2) < reach) & (np.abs(y - (top + bottom) / 2) < reach)
            inside = near & (x > left) & (x < right) & (y > top) & (y < bottom)
            sides = np.stack([x - left, y - top, right - x, bottom - y])[:, inside] / stride
            found[name][image, :4, inside] = np.log(np.maximum(sides, 0.05)).T
            found[name][image, 4:, inside] = np.eye(len(CLASSES))[int(cls)]
    return {name: torch.from_numpy(value) for name, value in found.items()}


def loss_of(outputs: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
    """Return focal loss of the classes, and distance of the sides where there is a box, both for one cell of a box."""
    total, cells = torch.zeros(()), torch.zeros(())
    for name, found in outputs.items():
        classes, sides = wanted[name][:, 4:], wanted[name][:, :4]
        chance = torch.sigmoid(found[:, 4:])
        miss = torch.where(classes > 0, 1 - chance, chance)
        entropy = F.binary_cross_entropy_with_logits(found[:, 4:], classes, reduction="none")
        is_box = classes.amax(1, keepdim=True)
        distance = F.smooth_l1_loss(found[:, :4], sides, beta=0.1, reduction="none")
        total = total + (entropy * miss**2).sum() + (distance * is_box).sum()
        cells = cells + is_box.sum()
    return total / cells.clamp_min(1)


def train(model: nn.Module, x: Tensor, wanted: dict[str, Tensor], epochs: int, rate: float, batch: int) -> None:
    """Train any model that maps images to these outputs."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-4)
    steps = -(-len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=max(epochs * steps, 2))
    model.train()
    for epoch in range(epochs):
        losses = []
        for some in torch.randperm(len(x)).split(batch):
            if len(some) == 1:
                continue  # of which BatchNorm would have no variance
            loss = loss_of(model(x[some]), {name: value[some] for name, value in wanted.items()})
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"  epoch {epoch + 1}: loss {np.mean(losses):.4f}")
    model.eval()


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, batch: int) -> dict[str, np.ndarray]:
    """Return the outputs for all images."""
    parts = [model(some) for some in x.split(batch)]
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def run(settings: Settings, folder: Path) -> Outcome:
    """Train, quantize, deploy, verify, and draw."""
    torch.manual_seed(0)
    shown, scenes = draw_scenes(settings.train, settings.size, 0), draw_scenes(settings.test, settings.size, 1)
    pixels = Preprocessing.from_statistics((3, settings.size, settings.size), mean=0.5, std=0.25)
    x, test = (torch.from_numpy(pixels.normalize(some.images)) for some in (shown, scenes))
    wanted, labels = targets(shown.boxes, settings.size), pad_boxes(scenes.boxes)

    network = Detector(settings.width)
    print("float")
    train(network, x, wanted, settings.epochs, 4e-3, settings.batch)
    in_float = predict(network, test, settings.batch)
    metric = AveragePrecision(DECODER)
    metric.add(in_float, labels)

    model = prepare(network, QuantConfig(weight_bits=4, activation_bits=4), x[:1], input_grid=pixels)
    calibrate(model, x[:256].split(settings.batch))
    print("4-bit weights, 4-bit activations")
    train(model, x, wanted, settings.quantized_epochs, 1e-3, settings.batch)
    frozen = freeze(model)
    path = folder / "detection.onnx"
    export_onnx(frozen, path, preprocessing=pixels, class_names=CLASSES, boxes=DECODER)

    def in_pytorch(images: np.ndarray) -> dict[str, np.ndarray]:
        return predict(frozen, torch.from_numpy(pixels.normalize(images)), settings.batch)

    images = ImageSet(images=scenes.images, labels=labels, class_names=CLASSES)
    report = verify(path, images.batches(settings.batch), others={"frozen PyTorch": in_pytorch})
    draw(scenes, DECODER.decode({name: value[:8] for name, value in in_float.items()}), path, folder / "detection.png")
    return Outcome(float_ap=metric.value(), quantized_ap=report.reference_accuracy or 0.0, report=report)


def draw(scenes: Scenes, in_float: list[Detections], file: Path, picture: Path) -> None:
    """Draw the boxes of the first scenes: labels, float network, the file in ONNX Runtime."""
    model = read_exported_model(file)
    in_file = (model.boxes or DECODER).decode(model.values(model.onnx_runner()(scenes.images[: len(in_float)])))
    rows = []
    for index, (first, second) in enumerate(zip(in_float, in_file, strict=True)):
        truth = scenes.boxes[index]
        labels = Detections(boxes=truth[:, :4], scores=np.ones(len(truth)), classes=truth[:, 4].astype(int))
        rows.append([_with_boxes(scenes.images[index], found) for found in (labels, first, second)])
    write_rows(str(picture), rows, scale=1)


def _with_boxes(image: np.ndarray, found: Detections, scale: int = 4) -> np.ndarray:
    height, width = image.shape[1:]
    large = Image.fromarray(image.transpose(1, 2, 0)).resize((scale * width, scale * height), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(large)
    for box, score, cls in zip(found.boxes, found.scores, found.classes, strict=True):
        if score >= SHOWN:
            colour = tuple(COLOURS[1 + cls].tolist())
            pen.rectangle([float(scale * side) for side in box], outline=colour, width=2)
            pen.text((scale * float(box[0]) + 4, scale * float(box[1]) + 2), f"{CLASSES[cls]} {score:.2f}", fill=colour)
    return np.array(large)


if __name__ == "__main__":
    outcome = run(Settings(), Path())
    print(f"AP at IoU 0.5: float {100 * outcome.float_ap:.2f} %, 4/4 bits {100 * outcome.quantized_ap:.2f} %")
    for backend in outcome.report.backends:
        print(f"{backend.name}: {backend.differing_logits:,} numbers differ from the integer reference")
