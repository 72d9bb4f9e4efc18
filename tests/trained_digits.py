"""A small residual network trained on the digits, which several tests prepare, calibrate and freeze."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from qil_deploy.config import QuantConfig
from qil_deploy.datasets import load_images, preprocessing_for
from qil_deploy.network.preparation import prepare
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.training.data.memory_batches import to_input


class SmallNetwork(nn.Module):
    """A residual network that learns the digits in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm0 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.conv3 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 32, 3, padding=1, groups=2)
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(2)
        self.mean, self.dropout, self.fc = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.05), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm0(self.stem(x)))
        y = self.conv2(self.relu(self.norm1(self.conv1(x))))
        y = self.relu(self.conv3(self.pool(self.relu(x + y))))
        logits: Tensor = self.fc(self.dropout(self.mean(y).flatten(1)))
        return logits


@dataclass(frozen=True)
class Digits:
    """The images, and the float network trained on the first 1,024 of them."""

    images: Tensor
    labels: Tensor
    network: SmallNetwork
    preprocessing: Preprocessing

    def batches(self) -> list[Tensor]:
        """Four batches of training images."""
        return list(self.images[:512].split(128))

    def fresh(self) -> Tensor:
        """Images that the network was not trained on."""
        return self.images[1024:]

    def prepare(self, bits: int = 4, placement: str = "integer", *, train_gamma: bool = False) -> fx.GraphModule:
        """Return the network with inner layers of `bits` (8-bit activations take 7-bit weights), uncalibrated."""
        config = QuantConfig.model_validate(
            {
                "weight_bits": min(bits, 7),
                "activation_bits": bits,
                "placement": placement,
                "train_gamma": train_gamma,
            }
        )
        return prepare(self.network, config, self.images[:1], input_grid=self.preprocessing)


def norms(network: SmallNetwork) -> list[nn.BatchNorm2d]:
    return [network.norm0, network.norm1]


def train_digits() -> Digits:
    """Return the digits with the network trained on them."""
    data = load_images("digits", "train")
    preprocessing = preprocessing_for("digits", data)
    images, labels = to_input(torch.tensor(data.images), preprocessing), torch.tensor(data.labels)
    torch.manual_seed(0)
    result = Digits(images=images, labels=labels, network=SmallNetwork().train(), preprocessing=preprocessing)
    optimizer = torch.optim.Adam(result.network.parameters(), lr=2e-2)
    for _ in range(5):
        for start in range(0, 1024, 64):
            optimizer.zero_grad()
            logits = result.network(images[start : start + 64])
            nn.functional.cross_entropy(logits, labels[start : start + 64]).backward()
            optimizer.step()
    # Statistics of the images that calibration sees, so that a comparison shows quantization alone.
    with torch.no_grad():
        for norm in norms(result.network):
            norm.reset_running_stats()
            norm.momentum = None
        for batch in result.batches():
            result.network(batch)
        for norm in norms(result.network):
            norm.momentum = 0.1
    result.network.eval()
    return result
