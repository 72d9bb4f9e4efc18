"""Plain modules for captured calls of gates: products of two tensors, sigmoids, and activations made of both.

SiLU          x * sigmoid(x)
Hardswish     x * hard_sigmoid(x)
"""

from __future__ import annotations

import torch
from torch import nn

from .captured_call import Call, CallError, Data, Modules
from .layers import Product


def multiply(call: Call) -> Modules:
    """Product, of two tensors that broadcast."""
    factor = call.arguments["other"]
    if isinstance(factor, int | float) and factor == 1:
        return []
    if len(call.inputs) != 2 or not isinstance(factor, Data):
        raise CallError("multiplies by something else than a tensor of the network")
    a, b = call.inputs
    if len(a) != len(b):
        raise CallError(f"multiplies tensors of {len(a)} and {len(b)} dimensions")
    if a[0] != b[0]:
        raise CallError("multiplies tensors of different numbers of images")
    return [Product()]


def sigmoid(_call: Call) -> Modules:
    """Sigmoid."""
    return [nn.Sigmoid()]


def hard_sigmoid(_call: Call) -> Modules:
    """Hardsigmoid."""
    return [nn.Hardsigmoid()]


def silu(_call: Call) -> Modules:
    """Sigmoid, and its product with what it reads."""
    return [nn.Sigmoid(), Product()]


def hard_swish(_call: Call) -> Modules:
    """Hardsigmoid, and its product with what it reads."""
    return [nn.Hardsigmoid(), Product()]


def leaky_relu(call: Call) -> Modules:
    """LeakyReLU."""
    return [nn.LeakyReLU(float(call.arguments["negative_slope"]))]


def prelu(call: Call) -> Modules:
    """PReLU, of one slope for all channels."""
    slope = call.parameter("weight")
    if not isinstance(slope, torch.Tensor) or slope.numel() != 1:
        raise CallError("has a slope for each channel; what is lowered has one for all: nn.PReLU()")
    if not isinstance(slope, nn.Parameter):
        slope = nn.Parameter(slope, requires_grad=False)
    module = nn.PReLU()
    module.weight = slope
    return [module]
