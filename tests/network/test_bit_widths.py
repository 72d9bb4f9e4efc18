"""Other bits for a prepared model: what stays, what is set from data, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from qil_deploy.config import LayerOverride, Placement, QuantConfig
from qil_deploy.network.bit_widths import bits_read, change_bits, quantized_layers
from qil_deploy.network.calibration import calibrate, estimate_batchnorm
from qil_deploy.network.preparation import prepare
from qil_deploy.preprocessing import Preprocessing

PIXELS = Preprocessing.from_statistics((1, 8, 8), 0.3, 0.4)


class Block(nn.Module):
    """A tensor that two layers read, one followed by BatchNorm and one with a scale of its own, and a last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.right = nn.Conv2d(8, 8, 1)
        self.inner = nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.left(x) + self.right(x))
        x = torch.relu(self.inner(x))
        logits: Tensor = self.fc(torch.flatten(x.mean((2, 3), keepdim=True), 1))
        return logits


@pytest.fixture
def batches() -> list[Tensor]:
    return [PIXELS.scale * (torch.randint(0, 256, (32, 1, 8, 8)) - PIXELS.zero_point) for _ in range(2)]


@pytest.fixture
def network(batches: list[Tensor]) -> nn.Module:
    model = Block()
    estimate_batchnorm(model, batches)
    return model.eval()


def trained(network: nn.Module, config: QuantConfig, batches: list[Tensor]) -> fx.GraphModule:
    """Prepare and calibrate, then move every parameter a little, as training would."""
    model = prepare(network, config, batches[0], input_grid=PIXELS)
    calibrate(model, batches)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter) * parameter.abs().mean())
    estimate_batchnorm(model, batches)
    return model.eval()


def config_with(placement: Placement, **overrides: LayerOverride) -> QuantConfig:
    patterns = {name.replace("_", "."): override for name, override in overrides.items()}
    return QuantConfig(weight_bits=4, activation_bits=4, placement=placement, overrides=patterns)


@pytest.mark.parametrize("placement", ["integer", "paper"])
def test_the_same_bits_are_the_same_model(placement: Placement, network: nn.Module, batches: list[Tensor]) -> None:
    model = trained(network, config_with(placement), batches)
    before = model(batches[0])
    same = change_bits(model, Block(), config_with(placement), batches, input_grid=PIXELS)
    torch.testing.assert_close(same(batches[0]), before, rtol=0, atol=0)
    torch.testing.assert_close(model(batches[0]), before, rtol=0, atol=0)


@pytest.mark.parametrize("placement", ["integer", "paper"])
def test_one_layer_changes_and_the_rest_keeps_what_it_learned(
    placement: Placement, network: nn.Module, batches: list[Tensor]
) -> None:
    model = trained(network, config_with(placement), batches)
    lower = LayerOverride(weight_bits=2, activation_bits=3)
    changed = change_bits(model, Block(), config_with(placement, right=lower), batches, input_grid=PIXELS)
    layers, before = quantized_layers(changed), quantized_layers(model)
    assert {name: layer.weight_quantizer.bits for name, layer in layers.items()} == {
        name: 2 if name == "right" else layer.weight_quantizer.bits for name, layer in before.items()
    }
    assert bits_read(changed) == bits_read(model) | {"right": 3}
    assert bits_read(model)["left.0"] == 4
    for name, layer in layers.items():
        torch.testing.assert_close(layer.weight, before[name].weight, rtol=0, atol=0)
        same = layer.weight_quantizer.thresholds == before[name].weight_quantizer.thresholds
        assert same == (name != "right")
    learned = {
        module.thresholds for name, module in model.named_modules() if name.startswith("intervals.")
        and hasattr(module, "thresholds")
    }  # fmt: skip
    found = {
        module.thresholds for name, module in changed.named_modules() if name.startswith("intervals.")
        and hasattr(module, "thresholds")
    }  # fmt: skip
    # In paper placement the interval of `right` is replaced; in integer placement `left` keeps the shared one.
    assert len(learned & found) == len(learned) - (placement == "paper")
    assert len(found - learned) == 1


def test_an_output_scale_keeps_its_ratio_to_the_thresholds(network: nn.Module, batches: list[Tensor]) -> None:
    model = trained(network, config_with("integer"), batches)
    lower = LayerOverride(weight_bits=2)
    changed = change_bits(model, Block(), config_with("integer", inner=lower), batches, input_grid=PIXELS)
    old, new = quantized_layers(model)["inner"], quantized_layers(changed)["inner"]
    assert old.log_output_scale is not None
    assert new.log_output_scale is not None
    # The activations are as before, so only the weights' threshold counts.
    moved = float((new.log_output_scale - old.log_output_scale).exp().detach())
    thresholds = new.weight_quantizer.thresholds[1] / old.weight_quantizer.thresholds[1]
    assert moved == pytest.approx(thresholds, rel=1e-5)
    assert thresholds != 1.0


def test_what_stands_in_for_a_pooling_is_no_layer_to_change(network: nn.Module, batches: list[Tensor]) -> None:
    pooled = nn.Sequential(
        network.get_submodule("stem"), nn.AvgPool2d(2), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 10)
    )
    model = prepare(pooled, QuantConfig(), batches[0], input_grid=PIXELS)
    assert list(quantized_layers(model)) == ["0.0", "2", "4"]
