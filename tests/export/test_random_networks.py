"""Random networks of all supported operations: reference, ONNX Runtime and frozen PyTorch agree on every code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy.config import LayerOverride, QuantConfig
from qil_deploy.preprocessing import Preprocessing

if TYPE_CHECKING:
    from tests.export.conftest import Exports

CHANNELS = 4
CLASSES = 3


@dataclass(frozen=True)
class Conv:
    """A convolution, with or without BatchNorm and ReLU; padding keeps the size at stride 1."""

    kernel: int
    stride: int
    groups: int  # CHANNELS: depthwise
    norm: bool
    relu: bool
    bias: bool
    dilation: int = 1

    def build(self, in_channels: int = CHANNELS) -> nn.Sequential:
        padding = self.dilation * (self.kernel // 2)
        groups = 1 if in_channels != CHANNELS else self.groups
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, CHANNELS, self.kernel, self.stride, padding, self.dilation, groups, bias=self.bias)
        ]
        layers += [nn.BatchNorm2d(CHANNELS)] if self.norm else []
        layers += [nn.ReLU()] if self.relu else []
        return nn.Sequential(*layers)


@dataclass(frozen=True)
class Pool:
    """A max pool."""

    kernel: int
    stride: int
    padding: int
    ceil_mode: bool

    def build(self) -> nn.Module:
        return nn.MaxPool2d(self.kernel, self.stride, self.padding, ceil_mode=self.ceil_mode)


@dataclass(frozen=True)
class Dropout:
    """A dropout: nothing, in evaluation."""

    def build(self) -> nn.Module:
        return nn.Dropout(0.3)


@dataclass(frozen=True)
class Residual:
    """Two convolutions and a shortcut around them: identity, or a convolution."""

    first: Conv
    second: Conv
    shortcut: Conv | None
    relu: bool

    def build(self) -> nn.Module:
        return ResidualBlock(self)


class ResidualBlock(nn.Module):
    def __init__(self, block: Residual) -> None:
        super().__init__()
        self.body = nn.Sequential(block.first.build(), block.second.build())
        self.shortcut = nn.Identity() if block.shortcut is None else block.shortcut.build()
        self.relu = block.relu

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x) + self.shortcut(x)
        return F.relu(y) if self.relu else y


@dataclass(frozen=True)
class Spec:
    """A network, how it is quantized, and what its image and numbers are drawn from."""

    stem: Conv
    blocks: tuple[Conv | Pool | Dropout | Residual, ...]
    pooled: bool
    hidden: tuple[int, ...]
    weight_bits: int
    activation_bits: int
    override: LayerOverride | None
    image_channels: int
    size: tuple[int, int]
    input_zero_point: int
    seed: int


class Network(nn.Module):
    """A stem, blocks, and a head: pooled features and one linear layer, or several linear layers like AlexNet's."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.stem = spec.stem.build(spec.image_channels)
        self.blocks = nn.Sequential(*(block.build() for block in spec.blocks))
        self.pool = nn.AdaptiveAvgPool2d(1) if spec.pooled else nn.Identity()
        with torch.no_grad():
            image = torch.zeros(2, spec.image_channels, *spec.size)
            features = self.features(image).shape[1]
        layers: list[nn.Module] = []
        for width in spec.hidden:
            layers += [nn.Dropout(), nn.Linear(features, width), nn.ReLU()]
            features = width
        self.head = nn.Sequential(*layers, nn.Linear(features, CLASSES))

    def features(self, x: Tensor) -> Tensor:
        return torch.flatten(self.pool(self.blocks(self.stem(x))), 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


def convs(strides: tuple[int, ...] = (1, 2)) -> st.SearchStrategy[Conv]:
    return st.builds(
        Conv,
        kernel=st.sampled_from((1, 3, 5)),
        stride=st.sampled_from(strides),
        groups=st.sampled_from((1, 2, CHANNELS)),
        norm=st.booleans(),
        relu=st.booleans(),
        bias=st.booleans(),
        dilation=st.sampled_from((1, 1, 2)),
    )


@st.composite
def residuals(draw: st.DrawFn) -> Residual:
    first, second = draw(convs()), draw(convs((1,)))
    needed = first.stride != 1
    # The shortcut has to end at the size of the body: kernel 1 or 3 with its padding, and the same stride.
    shortcut = draw(convs((first.stride,))) if needed or draw(st.booleans()) else None
    return Residual(first, second, shortcut, relu=draw(st.booleans()))


def _pool(window: tuple[int, int, int], ceil_mode: bool) -> Pool:
    return Pool(*window, ceil_mode=ceil_mode)


def pools() -> st.SearchStrategy[Pool]:
    windows = st.sampled_from(((2, 2, 0), (2, 1, 0), (3, 2, 1), (3, 1, 1), (2, 1, 1)))
    return st.builds(_pool, windows, st.booleans())


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    weight_bits, activation_bits = draw(
        st.tuples(st.integers(2, 8), st.integers(2, 8)).filter(lambda bits: bits != (8, 8))
    )
    bits = st.none() | st.integers(2, 7)
    return Spec(
        stem=draw(convs((1,))),
        blocks=tuple(draw(st.lists(convs() | pools() | residuals() | st.just(Dropout()), min_size=1, max_size=4))),
        pooled=draw(st.booleans()),
        hidden=tuple(draw(st.lists(st.integers(2, 6), max_size=2))),
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        override=draw(st.none() | st.builds(LayerOverride, weight_bits=bits, activation_bits=bits)),
        image_channels=draw(st.sampled_from((1, 3))),
        size=draw(st.sampled_from(((8, 8), (9, 7), (12, 10)))),
        input_zero_point=draw(st.sampled_from((0, 73, 128, 255))),
        seed=draw(st.integers(0, 1000)),
    )


def has(spec: Spec, kind: type) -> bool:
    return any(isinstance(block, kind) for block in spec.blocks)


@given(spec=specs(), input_kind=st.sampled_from(("uint8", "float")), weights=st.sampled_from(("packed", "int8")))
# Shrinking such networks takes many minutes and their specs are short already.
@settings(max_examples=25, phases=(Phase.explicit, Phase.reuse, Phase.generate))
def test_every_code_and_logit_is_equal(
    exports: Exports, folder: Path, spec: Spec, input_kind: str, weights: str
) -> None:
    event(f"residual: {has(spec, Residual)}, max pool: {has(spec, Pool)}, linear layers: {1 + len(spec.hidden)}")
    torch.manual_seed(spec.seed)
    network = Network(spec)
    rng = np.random.default_rng(spec.seed)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            with torch.no_grad():
                layer.weight.normal_()
                layer.weight[int(rng.integers(len(layer.weight)))] *= float(rng.choice((0.0, 1e-9, 5.0)))
                if layer.bias is not None:
                    layer.bias.normal_()
    inner = [name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)][1:-1]
    overrides = {inner[0]: spec.override} if inner and spec.override is not None else {}
    config = QuantConfig(weight_bits=spec.weight_bits, activation_bits=spec.activation_bits, overrides=overrides)
    images = rng.integers(0, 256, (6, spec.image_channels, *spec.size), np.uint8)
    preprocessing = Preprocessing(
        channels=spec.image_channels,
        height=spec.size[0],
        width=spec.size[1],
        scale=float(rng.uniform(0.005, 0.02)),
        zero_point=spec.input_zero_point,
    )
    case = exports.case(network, config, images, preprocessing, spec.seed)
    for format_ in ("qlinear", "qdq"):
        values = exports.check_equal(case, folder / "model.onnx", format=format_, input=input_kind, weights=weights)
        assert np.isfinite(values["logits"]).all()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("random")
