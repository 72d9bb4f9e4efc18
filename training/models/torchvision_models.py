"""Networks of torchvision, for images of any number of channels, and AlexNet with BatchNorm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision import models

TORCHVISION_CHANNELS = 3
MOBILENET_V2_WIDTH = 32
_MOBILENET_V2_MULTIPLE = 8


def torchvision_model(name: str, **options: Any) -> Callable[..., nn.Module]:  # noqa: ANN401 - of that network
    """Return the builder of a network of `torchvision.models` with random weights; `options` are its keyword arguments.

    Unless images have three channels, the first convolution is replaced by an otherwise equal one,
    initialised as PyTorch does by default.
    """

    def build(in_channels: int, num_classes: int) -> nn.Module:
        model: nn.Module = getattr(models, name)(num_classes=num_classes, **options)
        if in_channels != TORCHVISION_CHANNELS:
            _replace_first_convolution(model, in_channels)
        return model

    return build


def mobilenet_v2(in_channels: int, num_classes: int, width: int = MOBILENET_V2_WIDTH) -> nn.Module:
    """Build torchvision's MobileNetV2.

    Args:
        in_channels: of the images.
        num_classes: number of logits.
        width: channels of the first convolution, a multiple of 8; those of the blocks in proportion, rounded to
            multiples of 8.

    Raises:
        ValueError: another width.
    """
    if width % _MOBILENET_V2_MULTIPLE:
        raise ValueError(f"width is {width}; it must be a multiple of {_MOBILENET_V2_MULTIPLE}")
    return torchvision_model("mobilenet_v2", width_mult=width / MOBILENET_V2_WIDTH)(in_channels, num_classes)


def alexnet_bn(in_channels: int, num_classes: int) -> nn.Module:
    """Build torchvision's AlexNet with BatchNorm between each convolution and its ReLU.

    Those convolutions have no bias. The linear layers keep theirs, and have no BatchNorm: a quantized linear layer
    has a learned output scale instead, which does what the slope of a BatchNorm would.
    """
    model = torchvision_model("alexnet")(in_channels, num_classes)
    layers: list[nn.Module] = []
    for layer in model.get_submodule("features").children():
        if isinstance(layer, nn.Conv2d):
            layer.bias = None
            layers += [layer, nn.BatchNorm2d(layer.out_channels)]
        else:
            layers.append(layer)
    model.features = nn.Sequential(*layers)
    return model


def _replace_first_convolution(model: nn.Module, in_channels: int) -> None:
    name, first = next((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    replacement = nn.Conv2d(
        in_channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type] # hinted as tuple[int, ...]
        first.stride,  # type: ignore[arg-type] # as above
        first.padding,  # type: ignore[arg-type] # as above
        bias=first.bias is not None,
    )
    model.set_submodule(name, replacement)
