"""BatchNorm and activations are absorbed by a layer even after moves of its values."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy.integers.freeze_model import freeze
from qil_deploy.integers.frozen_layer import FrozenLayer
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.layers import QuantConv2d, Standalone

from .prepared_network import GRID, prepared


def images(count: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return torch.from_numpy(GRID.normalize(pixels.numpy()))


def decoder(*behind: nn.Module, up: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    up = up or nn.ConvTranspose2d(4, 6, 4, 2, 1)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), up, *behind, nn.Conv2d(6, 5, 1))


class Rows(nn.Module):
    """A convolution of rows with BatchNorm and ReLU, and a convolution of the result, as an image again."""

    def __init__(self, *behind: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(6, 5, 1)
        self.rows = nn.Sequential(nn.Conv1d(4, 6, 3, padding=1), *behind)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.rows(F.relu(self.first(x)).flatten(2)).view(-1, 6, 8, 8))
        return logits


TAKEN_IN = {
    "norm and relu": decoder(nn.BatchNorm2d(6), nn.ReLU()),
    "relu": decoder(nn.ReLU6()),
    "hard sigmoid": decoder(nn.BatchNorm2d(6), nn.Hardsigmoid()),
    "pixel shuffle": decoder(
        nn.BatchNorm2d(6), nn.ReLU(), up=nn.Sequential(nn.Conv2d(4, 24, 3, padding=1), nn.PixelShuffle(2))
    ),
    "rows": Rows(nn.BatchNorm1d(6), nn.ReLU()),
    "activation of rows": Rows(nn.Hardtanh(0, 2)),
    "map of features": nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 24), nn.Unflatten(1, (6, 2, 2)),
        nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TAKEN_IN)
@pytest.mark.parametrize("placement", ["integer", "paper"])
def test_nothing_stands_alone(case: str, placement: str) -> None:
    network = copy.deepcopy(TAKEN_IN[case])
    model = prepared(network, placement=placement)
    assert not [name for name, module in model.named_modules() if isinstance(module, Standalone)]
    calibrate(model, [images()])
    with torch.no_grad():
        found, expected = model.eval()(images()), network.train()(images())  # both by the statistics of these images
    assert float((found - expected).abs().mean()) < 0.2 * float(expected.std())
    if placement == "integer":
        layers = [module for module in freeze(model).modules() if isinstance(module, FrozenLayer)]
        assert len(layers) == 3


def test_the_scale_of_a_convolution_of_rows_is_fitted_to_the_float_network() -> None:
    network = copy.deepcopy(TAKEN_IN["rows"]).eval()
    model = prepared(network, output_scales="all")
    calibrate(model, [images()], float_model=network)
    layer, rows = model.get_submodule("rows.0"), network.get_submodule("rows.0")
    assert isinstance(layer, QuantConv2d)
    assert layer.log_output_scale is not None
    assert isinstance(rows.bias, nn.Parameter)
    read: list[Tensor] = []
    layer.register_forward_pre_hook(lambda _module, inputs: read.append(inputs[0]))
    with torch.no_grad():
        model.eval()(images())
        y = layer.unscaled(read[0]).flatten(2).double()
        f = (rows(F.relu(network.get_submodule("first")(images())).flatten(2)) - rows.bias[:, None]).double()
        fitted = (f * y).sum() / y.square().sum()
    torch.testing.assert_close(layer.log_output_scale.exp().double(), fitted, rtol=1e-5, atol=0)


def test_a_norm_of_pixels_in_another_order_stands_alone() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.last = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1)
            self.first = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.last(F.relu(self.norm(self.conv(self.first(x)).permute(0, 2, 1, 3))))
            return logits

    model = prepared(Turned())
    layer = model.get_submodule("norm_input")
    assert isinstance(layer, QuantConv2d)
    assert layer.groups == 8


def test_what_carries_a_lone_norm_takes_in_the_relu_behind_it() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1)
    )
    carriers = [name for name, _ in prepared(network).named_modules() if name.endswith("_input")]
    assert carriers == ["3_input"]
    carriers = [name for name, _ in prepared(network, norms_apart=True).named_modules() if name.endswith("_input")]
    assert carriers == ["3_input", "4_input"]


def test_statistics_are_those_of_what_the_network_normalizes() -> None:
    """A transposed convolution makes pixels that are cropped; training does not count them."""
    network = decoder(nn.BatchNorm2d(6), nn.ReLU(), up=nn.ConvTranspose2d(4, 6, 5, 2, 2, output_padding=1))
    model = prepared(network)
    calibrate(model, [images()])
    seen: list[Tensor] = []
    norm = model.get_submodule("3")
    norm.register_forward_hook(lambda _module, inputs, _result: seen.append(inputs[0]))
    norm.momentum = 1.0  # type: ignore[assignment] # a number, not a tensor
    model.train()
    model(images())
    assert tuple(seen[0].shape[2:]) == (8, 8)
    torch.testing.assert_close(norm.running_mean, seen[0].mean((0, 2, 3)), rtol=1e-5, atol=1e-6)


def test_biases_of_a_shuffled_layer_stay_its_own() -> None:
    """Channels that BatchNorm normalizes as one may have different biases."""
    network = TAKEN_IN["pixel shuffle"]
    convolution = network[2][0]  # type: ignore[index] # sequences
    with torch.no_grad():
        convolution.bias.copy_(torch.arange(24.0) % 4)
    model = prepared(network)
    layer = model.get_submodule("2.0")
    assert isinstance(layer, QuantConv2d)
    assert layer.bias is not None
    assert layer.log_output_scale is not None
    torch.testing.assert_close(layer.bias.detach(), torch.arange(24.0) % 4)


def test_a_frozen_decoder_is_the_prepared_one_but_for_roundings() -> None:
    network = TAKEN_IN["norm and relu"]
    model = prepared(network, weight_bits=7, activation_bits=7)
    calibrate(model, [images()])
    frozen = freeze(model)
    with torch.no_grad():
        before, after = model.eval()(images()), frozen(images())
    assert float((before - after).abs().mean()) < 0.01 * float(before.abs().max())
    frozen.train()
    frozen(images()).square().mean().backward()
    assert any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in frozen.parameters())
