"""Table of the networks that recipes and checkpoints can name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qil_deploy.checkpoint import Builder
from qil_deploy.errors import ConfigError
from qil_deploy.untrusted_text import excerpt

from .cifar_resnets import cifar_resnet
from .torchvision_models import alexnet_bn, mobilenet_v2, torchvision_model
from .user_models import build_user_model, is_user_model

_ALL_BUT_GOOGLENET = (
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
    "densenet121",
)

FROM_TORCHVISION = (*_ALL_BUT_GOOGLENET, "googlenet")  # for which torchvision has trained weights, of the same names

MODELS: dict[str, Callable[..., nn.Module]] = {
    **{f"resnet{depth}": cifar_resnet(depth) for depth in (8, 14, 20, 32, 44, 56)},
    **{name: torchvision_model(name) for name in _ALL_BUT_GOOGLENET},
    "mobilenet_v2": mobilenet_v2,  # takes a width, too
    # Without the auxiliary classifiers, which only training uses.
    "googlenet": torchvision_model("googlenet", aux_logits=False, init_weights=True),
    "alexnet_bn": alexnet_bn,
}


def memory_format_for(model: nn.Module) -> torch.memory_format:
    """Return the memory format in which to train a network: channels last, which is faster, if that is safe.

    In channels last, oneDNN's backward pass of a strided 1x1 convolution writes past its buffer when the input has
    fewer channels than a vector register holds floats, 16 at most (uxlfoundation/oneDNN, issue 6035).
    """
    for module in model.modules():
        narrow = isinstance(module, nn.Conv2d) and module.in_channels < 16
        if narrow and module.kernel_size == (1, 1) and module.stride != (1, 1):
            return torch.contiguous_format
    return torch.channels_last


def in_memory_format(images: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Convert images [N, C, H, W] to a memory format, strides included.

    With one channel they are in both formats, so that `contiguous` would leave them with the strides of the other one,
    by which convolutions choose theirs, and with it that of the whole network.
    """
    if images.shape[1] == 1:
        return images.clone(memory_format=memory_format)
    return images.contiguous(memory_format=memory_format)


def model_builder(trusted: str | None) -> Builder:
    """Return `build_model`, extended by one network of the user's, and no other.

    Args:
        trusted: the `module:function` that the user typed, or None; names of `MODELS` need no trust.

    Raises:
        ConfigError: `trusted` is neither.
    """
    if trusted is not None and trusted not in MODELS and not is_user_model(trusted):
        raise ConfigError(
            f"unknown model {excerpt(repr(trusted))}; known are {', '.join(MODELS)}, and MODULE:FUNCTION of yours."
        )

    def build(name: str, arguments: dict[str, Any]) -> nn.Module:
        if name == trusted and is_user_model(name):
            return build_user_model(name, arguments)
        return build_model(name, arguments)

    return build


def build_model(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Build a network by its name in `MODELS`; refuse other names, for which code would have to run.

    Args:
        name: one of `MODELS`.
        arguments: keyword arguments of the builder: `in_channels`, `num_classes`, and for CIFAR-style ResNets and
            MobileNetV2 `width`.

    Raises:
        ConfigError: unknown name, one of the user's, or arguments that the builder does not take.
    """
    if is_user_model(name):
        raise ConfigError(
            f"the network is built by {excerpt(repr(name))}, which is code outside this project; if you trust it, name "
            f"it yourself: --model {excerpt(name)}."
        )
    if name not in MODELS:
        raise ConfigError(f"unknown model {excerpt(repr(name))}; known are {', '.join(MODELS)}.")
    reason = _reason_against(name, arguments)
    if reason:
        raise ConfigError(f"model {name!r} cannot be built with {excerpt(arguments)}: {reason}.")
    try:
        return MODELS[name](**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"model {name!r} cannot be built with {excerpt(arguments)}: {excerpt(str(error))}."
        ) from error


def _reason_against(name: str, arguments: dict[str, Any]) -> str:
    """Return why a builder of `MODELS` cannot be called with these arguments, or an empty text."""
    taken = inspect.signature(MODELS[name]).parameters
    takes_any = any(rule.kind is inspect.Parameter.VAR_KEYWORD for rule in taken.values())
    for argument, value in arguments.items():
        if argument not in taken and not takes_any:
            return f"it takes {', '.join(taken)}, and no argument '{excerpt(argument, 40)}'"
        if type(value) is not int or value < 1:
            return f"{argument} is {excerpt(repr(value), 40)}, not a whole number from 1"
    collecting = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [name for name, rule in taken.items() if rule.default is rule.empty and rule.kind not in collecting]
    missing = [argument for argument in needed if argument not in arguments]
    return f"{', '.join(missing)} is missing" if missing else ""
