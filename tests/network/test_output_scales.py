"""`output_scales="all"`: a scale before every BatchNorm, which keeps its trained values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, fx, nn

from qil_deploy.config import Placement, QuantConfig
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.layers import QuantConv2d, QuantLinear
from qil_deploy.network.preparation import prepare
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import ActivationQuantizer

if TYPE_CHECKING:
    from tests.trained_digits import Digits

PLACEMENTS: list[Placement] = ["integer", "paper"]


def prepared(digits: Digits, placement: Placement, bits: int = 4) -> fx.GraphModule:
    config = QuantConfig(weight_bits=bits, activation_bits=bits, placement=placement, output_scales="all")
    return prepare(digits.network, config, digits.images[:1], input_grid=digits.preprocessing)


def quantized_layers(model: nn.Module) -> dict[str, QuantConv2d | QuantLinear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, QuantConv2d | QuantLinear)}


def norm_states(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value.clone()
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for key, value in module.state_dict().items()
    }


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_quantized_layer_has_a_scale(digits: Digits, placement: Placement) -> None:
    layers = quantized_layers(prepared(digits, placement))
    assert "conv1" in layers  # BatchNorm follows it
    assert all(layer.log_output_scale is not None for layer in layers.values())
    default = quantized_layers(digits.prepare(4, placement))
    assert default["conv1"].log_output_scale is None
    assert default["conv2"].log_output_scale is not None


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("with_float", [False, True])
def test_calibration_leaves_norms_bit_for_bit(digits: Digits, placement: Placement, with_float: bool) -> None:
    model = prepared(digits, placement)
    before = norm_states(digits.network)
    calibrate(model, digits.batches(), float_model=digits.network if with_float else None)
    after = norm_states(model)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name


def test_a_scale_starts_at_the_product_of_both_clipping_thresholds(digits: Digits) -> None:
    model = prepared(digits, "integer")
    calibrate(model, digits.batches())
    layer = quantized_layers(model)["conv1"]
    interval = model.get_submodule("intervals.conv1")
    assert isinstance(interval, ActivationQuantizer)
    assert layer.log_output_scale is not None
    product = layer.weight_quantizer.thresholds[1] * interval.thresholds[1]
    assert math.exp(float(layer.log_output_scale.detach())) == pytest.approx(product, rel=1e-5)


def result_of(layer: nn.Module, model: nn.Module, batch: Tensor) -> Tensor:
    results: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _layer, _inputs, result: results.append(result.double()))
    model(batch)
    handle.remove()
    return results[0]


@torch.no_grad()
def test_or_at_the_least_squared_error_against_the_float_layer(digits: Digits) -> None:
    """One batch: then the scale of every layer was set on exactly its later inputs."""
    model, (batch, *_) = prepared(digits, "integer", 3), digits.batches()
    calibrate(model, [batch], float_model=digits.network)
    for name, layer in quantized_layers(model.eval()).items():
        found = result_of(layer, model, batch)
        expected = result_of(digits.network.get_submodule(name), digits.network, batch)
        if layer.bias is not None:
            bias = layer.bias if found.ndim == 2 else layer.bias[:, None, None]
            found, expected = found - bias, expected - bias
        assert float((found * expected).sum() / found.square().sum()) == pytest.approx(1.0, rel=1e-4), name


@torch.no_grad()
def test_least_squares_bring_the_network_closer_than_the_product(digits: Digits) -> None:
    errors = []
    for float_model in (None, digits.network):
        model = prepared(digits, "integer", 3)
        calibrate(model, digits.batches(), float_model=float_model)
        expected = digits.network(digits.fresh())
        errors.append(float((model.eval()(digits.fresh()) - expected).norm() / expected.norm()))
    assert errors[1] < errors[0]


def test_layers_that_return_zeros_keep_a_finite_scale(digits: Digits) -> None:
    model = prepared(digits, "integer")
    calibrate(model, [torch.zeros(8, 1, 8, 8)], float_model=digits.network)
    for name, layer in quantized_layers(model).items():
        assert layer.log_output_scale is not None
        assert torch.isfinite(layer.log_output_scale), name


class Lone(nn.Module):
    """A BatchNorm that no layer absorbs: a fixed layer carries it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.norm, self.fc = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.norm(self.relu(self.conv(x))).mean((2, 3)))
        return logits


def test_a_lone_norm_gets_a_scale_of_one() -> None:
    grid = Preprocessing(channels=1, height=8, width=8, scale=0.01, zero_point=10)
    model = prepare(Lone(), QuantConfig(output_scales="all"), torch.zeros(1, 1, 8, 8), input_grid=grid)
    (carrier,) = [layer for name, layer in quantized_layers(model).items() if name.startswith("norm")]
    assert carrier.log_output_scale is not None
    assert float(carrier.log_output_scale.detach()) == 0.0
    assert not carrier.log_output_scale.requires_grad
