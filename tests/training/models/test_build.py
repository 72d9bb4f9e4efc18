"""The table of networks: inputs and outputs of each, and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from qil_deploy.checkpoint import load_model
from qil_deploy.errors import ConfigError
from qil_deploy.training.models.build import MODELS, build_model
from qil_deploy.training.recipe import recipe_from_dict
from qil_deploy.training.train import train

FROM_TORCHVISION = [
    "resnet18",
    "resnet34",
    "resnet50",
    "alexnet",
    "vgg11_bn",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "squeezenet1_1",
    "googlenet",
    "densenet121",
]


def build_without_memory(name: str, in_channels: int, num_classes: int) -> nn.Module:
    """Build on the meta device, which computes shapes only."""
    with torch.device("meta"):
        return build_model(name, {"in_channels": in_channels, "num_classes": num_classes}).eval()


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_images_of_any_number_of_channels_become_logits(name: str, in_channels: int) -> None:
    model = build_without_memory(name, in_channels, 7)
    assert model(torch.zeros(2, in_channels, 64, 64, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", FROM_TORCHVISION)
def test_networks_are_those_of_torchvision(name: str) -> None:
    options = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    with torch.device("meta"):
        original = getattr(torchvision.models, name)(**options)
    assert shapes(build_without_memory(name, 3, 1000)) == shapes(original)


@pytest.mark.parametrize("name", FROM_TORCHVISION)
def test_only_the_first_convolution_depends_on_the_images(name: str) -> None:
    gray, color = (build_without_memory(name, channels, 5) for channels in (1, 3))
    assert str(gray) == str(color).replace("Conv2d(3,", "Conv2d(1,", 1)


def test_alexnet_bn_normalizes_every_convolution() -> None:
    model = build_without_memory("alexnet_bn", 3, 1000)
    layers = list(model.get_submodule("features").children())
    norms = [index for index, layer in enumerate(layers) if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == 5
    for index in norms:
        convolution, norm, relu = layers[index - 1 : index + 2]
        assert isinstance(convolution, nn.Conv2d)
        assert convolution.bias is None
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.num_features == convolution.out_channels
        assert isinstance(relu, nn.ReLU)


def test_cifar_resnets_have_the_depth_of_their_name() -> None:
    for depth in (8, 14, 20, 32, 44, 56):
        model = build_without_memory(f"resnet{depth}", 1, 10)
        on_the_way = [
            module
            for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear) and "downsample" not in name
        ]
        assert len(on_the_way) == depth


def test_mobilenet_v2_has_the_width_that_is_asked_for() -> None:
    with torch.device("meta"):
        original = torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.25)
        built = build_model("mobilenet_v2", {"in_channels": 3, "num_classes": 10, "width": 8})
    assert shapes(built) == shapes(original)
    assert built.get_submodule("features.0.0").out_channels == 8


def test_a_width_of_mobilenet_v2_is_a_multiple_of_8() -> None:
    with pytest.raises(
        ConfigError, match=r"'mobilenet_v2' cannot be built with .*: width is 12; it must be a multiple of 8\."
    ):
        build_model("mobilenet_v2", {"in_channels": 3, "num_classes": 10, "width": 12})


def test_other_networks_of_torchvision_have_no_width() -> None:
    with pytest.raises(ConfigError, match=r"model 'resnet18' cannot be built with .*'width': 8.*argument 'width'"):
        build_model("resnet18", {"in_channels": 3, "num_classes": 10, "width": 8})


def test_unknown_networks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown model 'resnet19'; known are resnet8, .*, googlenet, alexnet_bn\."):
        build_model("resnet19", {"in_channels": 3, "num_classes": 10})


def test_a_recipe_trains_a_network_of_torchvision(rng: np.random.Generator, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("bright", "dark"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for index in range(4):
                pixels = rng.integers(0, 128, (32, 32, 3), np.uint8) + (128 if label == "bright" else 0)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    stage = {"weight_bits": 4, "activation_bits": 4, "epochs": 1, "batch_size": 8, "frozen_epochs": 1}
    content = {
        "name": "tiny",
        "data": str(tmp_path / "images"),
        "model": {"name": "resnet18"},
        "float_training": {"epochs": 1, "batch_size": 8},
        "stages": [stage],
    }

    result = train(recipe_from_dict(content, "test"), tmp_path / "run")

    frozen = result.stages[0].frozen
    assert frozen is not None
    info, model = load_model(frozen, build_model)
    assert info.model_arguments == {"in_channels": 3, "num_classes": 2}
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
