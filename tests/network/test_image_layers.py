"""Statistics of an image's channels move into the layers that read it, and nothing else of the network changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy.config import QuantConfig
from qil_deploy.errors import ConfigError
from qil_deploy.network import calibrate, capture_network, change_bits, prepare
from qil_deploy.network.image_layers import take_in_statistics
from qil_deploy.network.layers import AveragingConv2d, ImageAffine
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import InputQuantizer

PIXELS = Preprocessing.from_statistics((4, 8, 8), (0.1, 0.456, 0.406, 0.9), (0.229, 0.5, 0.05, 0.1))


class BothReadTheImage(nn.Module):
    """Two convolutions, one of which reads the image itself, the other its maxima."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(4, 6, 3)
        self.other = nn.Conv2d(4, 6, 1, bias=False)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(self.one(x), 2) + self.other(F.max_pool2d(x, 2))[..., 1:, 1:]
        logits: Tensor = self.head(F.relu(y).mean((2, 3)))
        return logits


class ConcatenatesTheImage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 1)
        self.head = nn.Conv2d(10, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.cat([self.conv(x), x], 1)).mean((2, 3))
        return y


class AddsToTheImage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head((x + F.relu(self.conv(x))).mean((2, 3)))
        return y


def behind(*first: nn.Module, channels: int = 6) -> nn.Sequential:
    return nn.Sequential(*first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm": lambda: behind(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)),
    "bias": lambda: behind(nn.Conv2d(4, 6, 3, stride=2)),
    "no bias": lambda: behind(nn.Conv2d(4, 6, 3, dilation=2, bias=False)),
    "groups": lambda: behind(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
    "depthwise": lambda: behind(nn.Conv2d(4, 8, 3, groups=4), channels=8),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 6), nn.ReLU(), nn.Linear(6, 5)),
    "max pool, linear": lambda: nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 6), nn.Linear(6, 5)),
    "reflection": lambda: behind(nn.ReflectionPad2d(1), nn.Conv2d(4, 6, 3)),
    "zeros, max pool": lambda: behind(nn.ZeroPad2d(1), nn.MaxPool2d(3), nn.Conv2d(4, 6, 3)),
    "BatchNorm first": lambda: behind(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)),
    "average first": lambda: behind(nn.AvgPool2d(2), nn.Conv2d(4, 6, 3)),
    "ReLU first": lambda: behind(nn.ReLU(), nn.Conv2d(4, 6, 3)),
    "dropout first": lambda: behind(nn.Dropout(0.5), nn.Conv2d(4, 6, 3)),
    "global average": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
    "concatenation": ConcatenatesTheImage,
    "addition": AddsToTheImage,
}  # fmt: skip


def build(name: str) -> nn.Module:
    """Return a network with trained BatchNorms."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
            assert tensor is not None
            nn.init.uniform_(tensor, -1, 1)
        nn.init.uniform_(norm.running_var, 0.5, 2)  # type: ignore[arg-type] # it has statistics
    return network.eval()


def images(count: int = 4) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, *PIXELS.shape), np.uint8)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_computed_stays_the_same_where_nothing_is_padded(name: str) -> None:
    network = build(name)
    x = torch.from_numpy(PIXELS.normalize(images()))
    graph = capture_network(network, x)
    take_in_statistics(graph, PIXELS)
    with torch.no_grad():
        expected = build(name)(x)
        torch.testing.assert_close(graph.eval()(InputQuantizer.of(PIXELS)(x)), expected, rtol=0, atol=1e-5)


def test_what_is_padded_is_the_zero_point_of_the_grid() -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(4, 6, 3, padding=1)
    network = behind(first).eval()
    x = torch.from_numpy(PIXELS.normalize(images()))
    shown = torch.tensor((PIXELS.zero_point - PIXELS.shift) * PIXELS.factor, dtype=torch.float32)[:, None, None]
    padded = shown.expand(4, 4, 10, 10).clone()
    padded[:, :, 1:-1, 1:-1] = x
    with torch.no_grad():
        expected = network[1:](F.conv2d(padded, first.weight, first.bias))
        graph = capture_network(network, x)
        take_in_statistics(graph, PIXELS)
        torch.testing.assert_close(graph.eval()(InputQuantizer.of(PIXELS)(x)), expected, rtol=0, atol=1e-5)


def test_the_callers_network_stays_as_it_is() -> None:
    network = build("BatchNorm")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    prepare(network, QuantConfig(), torch.zeros(1, *PIXELS.shape), input_grid=PIXELS)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("name", ["BatchNorm first", "average first", "concatenation", "addition", "dropout first"])
def test_what_cannot_take_the_statistics_in_reads_a_normalised_image(name: str) -> None:
    model = prepare(build(name), QuantConfig(), torch.zeros(1, *PIXELS.shape), input_grid=PIXELS)
    assert isinstance(model.get_submodule("normalize"), AveragingConv2d)
    assert not any(isinstance(module, ImageAffine) for module in model.modules())
    assert not list(model.get_submodule("normalize").parameters())


def test_layers_that_share_their_weights_go_on_sharing_them() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.head = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3), nn.Linear(6, 5)
            self.other.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head((self.one(x) + self.other(x)).mean((2, 3)))
            return y

    model = prepare(Shared(), QuantConfig(), torch.zeros(1, *PIXELS.shape), input_grid=PIXELS)
    assert model.get_submodule("one").weight is model.get_submodule("other").weight


def test_a_layer_that_is_not_trained_is_not_trained_later() -> None:
    network = build("no bias")
    network.get_parameter("0.weight").requires_grad_(False)
    model = prepare(network, QuantConfig(), torch.zeros(1, *PIXELS.shape), input_grid=PIXELS)
    first = model.get_submodule("0")
    assert not first.weight.requires_grad
    assert not first.bias.requires_grad


# An inner convolution behind a signed value reads its positive part alone, whatever makes the image.
@pytest.mark.parametrize("output_scales", ["all", "channels"])
@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - {"average first", "BatchNorm first"}))
def test_at_many_bits_the_prepared_network_is_nearly_the_float_one(
    name: str, output_scales: Literal["all", "channels"]
) -> None:
    x = torch.from_numpy(PIXELS.normalize(images(16)))
    config = QuantConfig(weight_bits=7, activation_bits=8, output_scales=output_scales)
    model = prepare(build(name), config, x[:1], input_grid=PIXELS)
    calibrate(model, [x], float_model=build(name))
    with torch.no_grad():
        expected = build(name)(x)
        found = model.eval()(x)
    assert float((found - expected).square().mean() / expected.var()) < 0.02


def test_bits_are_changed_without_taking_the_statistics_in_twice() -> None:
    x = torch.from_numpy(PIXELS.normalize(images()))
    network = build("bias")
    model = prepare(network, QuantConfig(weight_bits=4), x[:1], input_grid=PIXELS)
    calibrate(model, [x])
    changed = change_bits(model, network, QuantConfig(weight_bits=3), [x], input_grid=PIXELS)
    for name in ("weight", "bias"):
        assert torch.equal(getattr(changed.get_submodule("0"), name), getattr(model.get_submodule("0"), name))
    other = Preprocessing.from_statistics(PIXELS.shape, PIXELS.mean or (), (0.229, 0.5, 0.05, 0.2))
    with pytest.raises(ConfigError, match=r"input_grid has .* but the model was prepared with scale .* and std 0.229"):
        change_bits(model, network, QuantConfig(weight_bits=3), [x], input_grid=other)


def test_paper_placement_reads_what_the_network_reads() -> None:
    x = torch.from_numpy(PIXELS.normalize(images()))
    network = build("bias")
    model = prepare(network, QuantConfig(placement="paper"), x[:1], input_grid=PIXELS)
    assert torch.equal(model.get_parameter("0.weight"), network.get_parameter("0.weight"))
