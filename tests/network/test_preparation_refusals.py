"""Networks and overrides that cannot be prepared are refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy.errors import ConfigError, UnsupportedModelError

from .prepared_network import prepared, resnet8


def network(*inner: nn.Module, last: nn.Module | None = None) -> nn.Sequential:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)) if last is None else (last,)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), *inner, *head)


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x), x


class Wrapped(nn.Module):
    """A network whose forward is a function of its modules."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.first, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 64, 2)
        for name, module in modules.items():
            self.add_module(name, module)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def branch(_: nn.Module, x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def conv4(**options: object) -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3, **options)  # type: ignore[arg-type] # whatever the case asks for


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "tanh": (network(nn.Tanh()), r"module '2' \(Tanh\) cannot be lowered; supported are Conv2d, Linear"),
    "softmax": (network(last=nn.Softmax(1)), r"module '2' \(Softmax\) cannot be lowered"),
    "functional tanh": (
        Wrapped(lambda m, x: m.fc(torch.tanh(m.first(x)).flatten(1))),
        "operation 'tanh' .* cannot be lowered",
    ),
    "product": (
        Wrapped(lambda m, x: m.fc((m.first(x) * math.inf).flatten(1))),
        "operation 'mul' .* cannot be lowered: it multiplies by inf",
    ),
    "division by zero": (
        Wrapped(lambda m, x: m.fc((m.first(x) / 0).flatten(1))),
        "operation 'div' .* cannot be lowered: it divides by zero",
    ),
    "division by a parameter": (
        Wrapped(lambda m, x: m.fc((m.first(x) / m.first.weight[:1, 0, :1, :1]).flatten(1))),
        "operation 'div' .* cannot be lowered: it divides by what is computed from 'first.weight'",
    ),
    "constant sum": (
        Wrapped(lambda m, x: m.fc((m.first(x) + m.first.weight.mean()).flatten(1))),
        "operation 'add' .* cannot be lowered: it adds what is computed from 'first.weight'",
    ),
    "constants of pixels": (
        Wrapped(lambda m, x: m.fc((m.first(x) + m.pixels.weight).flatten(1)), pixels=nn.Embedding(8, 8)),
        r"cannot be lowered: it scales or shifts \[1, 4, 8, 8\] by constants of shape \[8, 8\]; one for each channel",
    ),
    "scaled sum": (
        Wrapped(lambda m, x: m.fc(torch.add(m.first(x), 1, alpha=2).flatten(1))),
        "operation 'add' .* cannot be lowered: it adds a tensor 2 times",
    ),
    "windows of many sizes": (
        network(nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2d((11, 11))),
        r"\(AdaptiveAvgPool2d\) cannot be lowered: it pools in 81 regions of windows of several sizes; 36 are",
    ),
    "pooling whose indices are read": (
        Wrapped(lambda m, x: m.fc((m.pool(m.first(x))[1] * 1.0).flatten(1)), pool=nn.MaxPool2d(1, return_indices=True)),
        r"\(MaxPool2d\) cannot be lowered",
    ),
    "smooth upsampling by three": (
        network(nn.Upsample(scale_factor=3, mode="bilinear")),
        r"\(Upsample\) cannot be lowered: it upsamples maps of \(8, 8\) to \(24, 24\) bilinearly; integer kernels",
    ),
    "smooth upsampling by nearly two": (
        network(nn.Upsample(scale_factor=2.1, mode="bilinear")),
        r"\(Upsample\) cannot be lowered: it upsamples maps of \(8, 8\) to \(16, 16\) bilinearly",
    ),
    "aligned corners": (
        network(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)),
        "cannot be lowered: it upsamples bilinearly with align_corners=True, which no integer kernel rounds alike",
    ),
    "bicubic": (network(nn.Upsample(scale_factor=2, mode="bicubic")), r"\(Upsample\) cannot be lowered"),
    "clipping to one value": (
        Wrapped(lambda m, x: m.fc(m.first(x).clamp(1, 1).flatten(1))),
        r"it clips to 1.0..1.0, between which there is nothing",
    ),
    "infinite padding in front of a layer": (
        network(nn.ConstantPad2d(1, -math.inf), conv4()),
        r"\(ConstantPad2d\) cannot be lowered: it pads with -inf what is read by something else than a pooling",
    ),
    "circular padding": (
        network(conv4(padding=1, padding_mode="circular")),
        r"cannot be lowered: it pads in mode 'circular'",
    ),
    "padding of channels": (
        Wrapped(lambda m, x: m.fc(F.pad(m.first(x), (0, 0, 0, 0, 0, 1))[:, :4].flatten(1))),
        "it pads or cuts something else than height and width",
    ),
    "no statistics": (
        network(conv4(padding=1), nn.BatchNorm2d(4, track_running_stats=False)),
        r"module '3' \(BatchNorm2d\) cannot be lowered: it has no running statistics",
    ),
    "concatenated rows": (
        Wrapped(lambda m, x: m.fc(torch.cat([y := m.first(x), y], 2).flatten(1))),
        "does not run on an input of shape",
    ),
    "no row or map": (
        Wrapped(lambda m, x: m.fc(m.first(x).flatten(1)).sum(1)),
        r"the network returns a tensor of shape \[1\] for one of shape \[1, 3, 8, 8\]; an output has one row of",
    ),
    "mean over channels": (Wrapped(lambda m, x: m.first(x).mean(1)), "operation 'mean' .* cannot be lowered"),
    "transposed and dilated": (
        network(nn.ConvTranspose2d(4, 4, 3, dilation=2, padding=2)),
        r"\(ConvTranspose2d\) cannot be lowered: it is a transposed convolution with dilation \[2, 2\]",
    ),
    "two inputs": (TwoInputs(), r"the network has 2 inputs \(x, y\); one image in is supported"),
    "the image among outputs": (TwoOutputs(), "output 'output_1' of the network is the image itself"),
    "control flow": (
        Wrapped(branch),
        r"Wrapped cannot be captured \(test_prep\w*.py, line \d+\): what it does depends on",
    ),
    "conv called twice": (
        Wrapped(lambda m, x: m.fc(m.again(m.again(m.first(x))).flatten(1)), again=conv4(padding=1)),
        "layer 'again' is called more than once; give each call its own layer",
    ),
    "norm called twice": (
        Wrapped(
            lambda m, x: m.fc((m.norm(m.first(x)) + m.norm(m.other(x))).flatten(1)),
            norm=nn.BatchNorm2d(4),
            other=nn.Conv2d(3, 4, 3, padding=1),
        ),
        "layer 'norm' is called more than once",
    ),
    "wrong size": (
        network(nn.Flatten(), last=nn.Linear(5, 2)),
        r"does not run on an input of shape \[1, 3, 8, 8\]: .*shapes cannot be multiplied \(1x256 and 5x2\)\.$",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_networks_that_are_refused(case: str) -> None:
    model, message = REFUSED[case]
    with pytest.raises(UnsupportedModelError, match=message):
        prepared(model)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"layer4.*": {"weight_bits": 3}}, r"override 'layer4\.\*' matches no layer; the layers are conv1, layer1\.0"),
        ({"bn1": {"weight_bits": 3}}, "override 'bn1' matches no layer"),
        ({"fc": {"activation_bits": 4}}, "layer fc: activation_bits=4, but the first and last layers read 8-bit codes"),
        ({"conv1": {"weight_bits": 8}}, "layer conv1: weight_bits=8 with activation_bits=8 would saturate"),
        ({"*": {"activation_bits": 8, "weight_bits": 8}}, "would saturate the int16 sums"),
    ],
)
def test_overrides_that_are_refused(overrides: dict[str, dict[str, int]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepared(resnet8(), overrides=overrides)
