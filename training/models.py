"""The table by which recipes and checkpoints name networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from qil_deploy.errors import ConfigError

from .cifar_resnets import cifar_resnet
from .torchvision_models import alexnet_bn, torchvision_model

_UNCHANGED = ("resnet18", "resnet34", "resnet50", "alexnet", "vgg11_bn", "mobilenet_v2", "squeezenet1_1", "densenet121")

MODELS: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{depth}": cifar_resnet(depth) for depth in (8, 14, 20, 32, 44, 56)},
    **{name: torchvision_model(name) for name in _UNCHANGED},
    # Without the auxiliary classifiers, which only training uses.
    "googlenet": torchvision_model("googlenet", aux_logits=False, init_weights=True),
    "alexnet_bn": alexnet_bn,
}


def memory_format_for(model: nn.Module) -> torch.memory_format:
    """Return the memory format to train a network in: channels last, which is faster, where that is safe.

    In channels last, oneDNN's backward pass of a strided 1x1 convolution writes past its buffer when the input has
    fewer channels than a vector register holds floats, 16 at most (uxlfoundation/oneDNN, issue 6035).
    """
    for module in model.modules():
        narrow = isinstance(module, nn.Conv2d) and module.in_channels < 16
        if narrow and module.kernel_size == (1, 1) and module.stride != (1, 1):
            return torch.contiguous_format
    return torch.channels_last


def build_model(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Build a network by its name in `MODELS`.

    Args:
        name: one of `MODELS`.
        arguments: keyword arguments of the builder: `in_channels`, `num_classes`, and for CIFAR-style ResNets `width`.

    Raises:
        ConfigError: unknown name, or arguments that the builder does not take.
    """
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}; known are {', '.join(MODELS)}.")
    try:
        return MODELS[name](**arguments)
    except TypeError as error:
        raise ConfigError(f"model {name!r} cannot be built with {arguments}: {error}") from error
