"""Preparation: the places of quantizers in both placements, and errors for networks that cannot be prepared."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn
from torch.nn import functional as F

from qil_deploy.config import LayerOverride
from qil_deploy.network.layers import GlobalAveragePool, QuantConv2d, QuantLinear
from qil_deploy.quantizers import ActivationQuantizer, InputQuantizer, RangeQuantizer, WeightQuantizer

from .prepared_network import prepared, resnet8


def placed(model: fx.GraphModule) -> dict[str, tuple[str, list[str]]]:
    """Return the source and the readers of each activation quantizer, by the names of the modules."""
    kinds = (ActivationQuantizer, RangeQuantizer, InputQuantizer)
    return {
        str(node.target): (str(node.all_input_nodes[0].target), sorted(str(user.target) for user in node.users))
        for node in model.graph.nodes
        if node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), kinds)
    }


def weight_bits(model: fx.GraphModule) -> dict[str, int]:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantConv2d | QuantLinear)}
    return {name: layer.weight_quantizer.bits for name, layer in layers.items()}


def block(group: str, *, shortcut: bool) -> dict[str, tuple[str, list[str]]]:
    """Quantizers of one residual block of resnet8 in integer placement, except the one of its input."""
    add = {"layer1": "add", "layer2": "add_1", "layer3": "add_2"}[group]
    readers = {"layer1": "intervals.layer2_0_conv1", "layer2": "intervals.layer3_0_conv1", "layer3": "pool"}[group]
    name = f"{group}_0"
    found = {
        f"intervals.{name}_conv2": (f"{group}.0.relu1", [f"{group}.0.conv2"]),
        f"ranges.{name}_bn2": (f"{group}.0.bn2", [add]),
        f"ranges.{name}_relu2": (f"{group}.0.relu2", [readers]),
    }
    if shortcut:
        found[f"ranges.{name}_downsample_1"] = (f"{group}.0.downsample.1", [add])
    return found


def test_integer_placement_of_resnet8() -> None:
    model = prepared(resnet8())
    assert placed(model) == {
        "input_quantizer": ("x", ["conv1"]),
        "ranges.relu": ("relu", ["add", "intervals.layer1_0_conv1"]),
        "intervals.layer1_0_conv1": ("ranges.relu", ["layer1.0.conv1"]),
        **block("layer1", shortcut=False),
        # One interval for both readers of the block's input: the first convolution and the shortcut's.
        "intervals.layer2_0_conv1": ("ranges.layer1_0_relu2", ["layer2.0.conv1", "layer2.0.downsample.0"]),
        **block("layer2", shortcut=True),
        "intervals.layer3_0_conv1": ("ranges.layer2_0_relu2", ["layer3.0.conv1", "layer3.0.downsample.0"]),
        **block("layer3", shortcut=True),
        "ranges.pool": ("pool", ["flatten"]),
    }
    bits = weight_bits(model)
    assert {name for name, width in bits.items() if width == 7} == {"conv1", "fc"}
    assert {width for name, width in bits.items() if name not in ("conv1", "fc")} == {4}
    signs = {name: module.signed for name, module in model.named_modules() if isinstance(module, RangeQuantizer)}
    assert {name for name, signed in signs.items() if signed} == {
        "ranges.layer1_0_bn2",
        "ranges.layer2_0_bn2",
        "ranges.layer2_0_downsample_1",
        "ranges.layer3_0_bn2",
        "ranges.layer3_0_downsample_1",
    }


def test_paper_placement_of_resnet8() -> None:
    model = prepared(resnet8(), placement="paper", weight_bits=3, activation_bits=2)
    inner = [f"layer{group}.0.{name}" for group in (1, 2, 3) for name in ("conv1", "conv2")]
    inner += ["layer2.0.downsample.0", "layer3.0.downsample.0"]
    found = placed(model)
    # One interval in front of each inner layer, and nothing else.
    assert {name: readers for name, (_, readers) in found.items()} == {
        f"intervals.{name.replace('.', '_')}": [name] for name in inner
    }
    assert found["intervals.layer2_0_conv1"][0] == found["intervals.layer2_0_downsample_0"][0] == "layer1.0.relu2"
    assert weight_bits(model) == dict.fromkeys(sorted(inner, key=list(weight_bits(model)).index), 3)
    assert type(model.get_submodule("conv1")) is nn.Conv2d
    assert type(model.get_submodule("fc")) is nn.Linear
    assert {module.bits for module in model.modules() if isinstance(module, ActivationQuantizer)} == {2}


def test_repr_shows_what_was_placed() -> None:
    text = repr(prepared(resnet8(), weight_bits=3, activation_bits=5))
    assert len(re.findall(r"WeightQuantizer\(bits=3, interval=\[0, ", text)) == 8
    assert len(re.findall(r"WeightQuantizer\(bits=7, interval=\[0, ", text)) == 2
    assert len(re.findall(r"ActivationQuantizer\(bits=5, interval=\[", text)) == 6
    assert len(re.findall(r"RangeQuantizer\(bits=8, range=\[", text)) == 10
    assert "(input_quantizer): InputQuantizer(bits=8, scale=0.0123, zero_point=77)" in text
    assert "GlobalAveragePool(window=4)" in text


def test_the_float_network_is_left_alone() -> None:
    model = resnet8()
    before = copy.deepcopy(model.state_dict())
    result = prepared(model)
    result.train()(torch.randn(4, 3, 8, 8))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(isinstance(module, WeightQuantizer) for module in model.modules())


def test_training_mode_is_kept() -> None:
    assert prepared(resnet8().train()).training
    assert not prepared(resnet8().eval()).training


def test_overrides_reach_their_layers() -> None:
    overrides = {
        "layer1.*": LayerOverride(weight_bits=2),
        "layer2.0.downsample.0": LayerOverride(activation_bits=6),
        "fc": LayerOverride(weight_bits=5),
    }
    model = prepared(resnet8(), overrides=overrides)
    bits = weight_bits(model)
    assert (bits["layer1.0.conv1"], bits["layer1.0.conv2"], bits["fc"], bits["layer2.0.conv1"]) == (2, 2, 5, 4)
    # Readers of other bits need a quantizer of their own.
    found = placed(model)
    assert found["intervals.layer2_0_conv1"] == ("ranges.layer1_0_relu2", ["layer2.0.conv1"])
    assert found["intervals.layer2_0_downsample_0"] == ("ranges.layer1_0_relu2", ["layer2.0.downsample.0"])


@pytest.mark.parametrize("train_gamma", [False, True])
def test_gamma_is_a_parameter_where_it_is_wanted(train_gamma: bool) -> None:
    quantizers = [m for m in prepared(resnet8(), train_gamma=train_gamma).modules() if isinstance(m, WeightQuantizer)]
    assert len(quantizers) == 10
    assert all((quantizer.gamma_raw is not None) == train_gamma for quantizer in quantizers)


@pytest.mark.parametrize("placement", ["integer", "paper"])
def test_torchvision_resnet18_prepares_and_trains(placement: str) -> None:
    model = prepared(torchvision.models.resnet18(num_classes=5), size=64, placement=placement)
    assert len(weight_bits(model)) == (21 if placement == "integer" else 19)
    logits = model.train()(torch.randn(2, 3, 64, 64))
    logits.sum().backward()
    assert logits.shape == (2, 5)
    if placement == "integer":
        # The stem's codes pass the max pooling on the grid they have.
        assert placed(model)["ranges.relu"] == ("relu", ["maxpool"])
        assert placed(model)["intervals.layer1_0_conv1"][0] == "maxpool"


class Functional(nn.Module):
    """A network written with functions instead of modules."""

    def __init__(self, tail: Callable[[Tensor], Tensor], features: int = 4) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(features, 2)
        self.tail = tail

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1(x))
        y = self.conv2(x).relu()
        x = F.relu(torch.add(x, y))
        logits: Tensor = self.fc(self.tail(x))
        return logits


TAILS: dict[str, Callable[[Tensor], Tensor]] = {
    "adaptive pool": lambda x: torch.flatten(F.adaptive_avg_pool2d(x, 1), 1),
    "adaptive pool by name": lambda x: F.adaptive_avg_pool2d(x, output_size=(1, 1)).flatten(1),
    "mean": lambda x: x.mean((2, 3)),
    "mean of the last": lambda x: x.mean(dim=[-1, -2]),
    "mean keeping": lambda x: x.mean((2, 3), keepdim=True).flatten(start_dim=1),
    "dropout": lambda x: F.dropout(torch.mean(x, (2, 3)), 0.0),
}


@pytest.mark.parametrize("tail", TAILS)
def test_functional_networks_compute_what_they_did(tail: str) -> None:
    model = Functional(TAILS[tail]).eval()
    x = torch.randn(5, 3, 8, 8)
    result = prepared(model)
    result.get_buffer("calibrated").fill_(True)  # there will be nothing to calibrate
    (pool,) = (module for module in result.modules() if isinstance(module, GlobalAveragePool))
    assert pool.window == 64
    for name, module in result.named_modules():
        if isinstance(module, WeightQuantizer | ActivationQuantizer | RangeQuantizer | InputQuantizer):
            module.forward = lambda value: value  # type: ignore[method-assign] # without rounding nothing changes
        elif isinstance(module, QuantConv2d | QuantLinear):
            assert name in ("conv1", "conv2", "fc")
            assert module.log_output_scale is not None
            assert float(module.log_output_scale.detach()) == 0.0
    with torch.no_grad():
        torch.testing.assert_close(result(x), model(x))


def test_functional_max_pooling_keeps_its_options() -> None:
    pooled = Functional(lambda x: F.max_pool2d(x, 3, stride=2, padding=1).flatten(1), features=64)
    (pool,) = (module for module in prepared(pooled).modules() if isinstance(module, nn.MaxPool2d))
    assert (pool.kernel_size, pool.stride, pool.padding) == ((3, 3), (2, 2), (1, 1))


class LogitsInside(nn.Module):
    """The last layer's result is an output and is read by another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.unused = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.first(x))
        self.unused(logits)
        return logits.flatten(1)


def test_a_branch_that_leads_nowhere_is_dropped() -> None:
    assert "unused" not in weight_bits(prepared(LogitsInside()))
