"""Plain modules for captured calls of gates: products of two tensors, sigmoids, and activations made of both.

SiLU          x * sigmoid(x)
Hardswish     x * hard_sigmoid(x)
"""

from __future__ import annotations

from torch import nn

from .captured_call import Call, CallError, Modules
from .layers import Product
from .rebuild_affine import scale


def multiply(call: Call) -> Modules:
    """Product, of two tensors that broadcast; of a tensor and constants, a scale."""
    if len(call.inputs) != 2:
        return scale(call)
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
    """Sigmoid, and its product with its input."""
    return [nn.Sigmoid(), Product()]


def hard_swish(_call: Call) -> Modules:
    """Hardsigmoid, and its product with its input."""
    return [nn.Hardsigmoid(), Product()]


def leaky_relu(call: Call) -> Modules:
    """LeakyReLU."""
    return [nn.LeakyReLU(float(call.arguments["negative_slope"]))]
