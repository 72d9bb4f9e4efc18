"""Interface of every method of learning quantizers; other packages know nothing else of a method.

A quantizer spreads codes evenly over an interval `[l, u]` with centre `c` and distance `d > 0`:

    l = c - d    u = c + d    weights: W = sign(w) * rint(q * t**gamma)    t = clip((|w| - l) / (2d), 0, 1)
                              activations: X = rint(q * clip((x - l) / (2d), 0, 1))

and returns `W / q` or `X / q`. The scale of a layer's result belongs to the BatchNorm after it, or to its output
scale; so freezing, checkpoints and export are the same for every method. Methods differ in what they learn of the
interval, by which gradient, and where it starts (decision 0036).

To add a method, write one file with subclasses of `WeightQuantizer` and `ActivationQuantizer` and a `Method`, and list
the `Method` in `methods.py`. Parameters are dimensionless scalars: one rate then suits every layer, and no step makes
an interval empty (decision 0009). They describe the interval, not the step between codes, and mean the same at every
bit width: a stage starts from those of the one before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .returning import let_weights_return
from .thresholds import best_threshold, strided_sample

if TYPE_CHECKING:
    from qil_deploy.config import QuantConfig

LARGEST_LOG = 80.0
"""Logarithms of scales lie within this of 0: exp(80) and exp(-80) are normal float32 numbers, and so are their products
with a few thousand."""


class IntervalQuantizer(nn.Module, ABC):
    """A learned interval: the common part of quantizers of weights and of activations.

    Args:
        bits: 2 to 8.
        largest_code: `q`, the code of the clipping threshold.
        gradient_scaling: of the rounding, in steps between codes (`kernels`).
    """

    def __init__(self, bits: int, largest_code: int, gradient_scaling: float) -> None:
        super().__init__()
        self.bits = bits
        self.largest_code = largest_code
        self.gradient_scaling = gradient_scaling

    @property
    @abstractmethod
    def distance(self) -> Tensor:
        """`d`, a positive scalar in the unit of the quantized tensor."""

    @property
    @abstractmethod
    def center(self) -> Tensor:
        """`c`, a scalar in the unit of the quantized tensor."""

    @property
    def thresholds(self) -> tuple[float, float]:
        """`(l, u)`: values below `l` are pruned, values above `u` are clipped; for weights, magnitudes."""
        center, distance = float(self.center.detach()), float(self.distance.detach())
        return center - distance, center + distance

    @abstractmethod
    def set_largest(self, largest: float) -> None:
        """Start with an interval that ends at `largest > 0`."""

    def fault(self) -> str | None:
        """Describe what is invalid about the present parameters, finite numbers from a file; None if nothing is."""
        for name, tensor in self.state_dict().items():
            value = float(tensor)
            if name.startswith("log_") and abs(value) > LARGEST_LOG:
                return f"{name} is {value:.6g}, beyond {-LARGEST_LOG:g} to {LARGEST_LOG:g}"
        return None

    def extra_repr(self) -> str:
        """Bits and interval."""
        lower, upper = self.thresholds
        return f"bits={self.bits}, interval=[{lower:.4g}, {upper:.4g}]"


class WeightQuantizer(IntervalQuantizer):
    """Quantizer of weights: values `W / q` with codes `W` in `-q..q`, `q = 2**(bits-1) - 1`; 2 bits are ternary.

    Args:
        bits: 2 to 8.
        gradient_scaling: of the rounding, in steps between codes (`kernels`).
        returning: whether weights outside of the interval have a gradient (`returning`).
    """

    def __init__(self, bits: int, *, gradient_scaling: float = 0.0, returning: bool = False) -> None:
        super().__init__(bits, 2 ** (bits - 1) - 1, gradient_scaling)
        self.returning = returning

    @property
    def gamma(self) -> Tensor | None:
        """The exponent, a positive scalar; None means 1."""
        return None

    @abstractmethod
    def forward(self, weight: Tensor) -> Tensor:
        """Return the quantized weights, in [-1, 1], of the shape of `weight`."""

    @abstractmethod
    def codes_real(self, weight: Tensor) -> Tensor:
        """Return the codes before rounding, in [-q, q]; `rint` of them are the codes."""

    def let_return(self, values: Tensor, weight: Tensor, largest: int = 1) -> Tensor:
        """Return a method's values of weights, with a gradient outside the interval if that is switched on.

        `largest` is the value at the end of the interval.
        """
        if not self.returning:
            return values
        return let_weights_return(values, weight, self.center.detach(), self.distance.detach(), largest)

    @torch.no_grad()
    def initialize(self, weight: Tensor) -> None:
        """Set the interval to `[0, u]` with the `u` of least squared error for these weights."""
        self.set_largest(best_threshold(strided_sample(weight).abs(), self.largest_code))


class ActivationQuantizer(IntervalQuantizer):
    """Quantizer of activations: values `X / q` with codes `X` in `0..q`, `q = 2**bits - 1`.

    Args:
        bits: 2 to 8.
        signed: whether activations can be negative; the interval then starts on both sides of 0.
        gradient_scaling: of the rounding, in steps between codes (`kernels`).
    """

    def __init__(self, bits: int, *, signed: bool = False, gradient_scaling: float = 0.0) -> None:
        super().__init__(bits, 2**bits - 1, gradient_scaling)
        self.signed = signed

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return the quantized activations, in [0, 1], of the shape of `x`."""

    @torch.no_grad()
    def initialize(self, x: Tensor) -> float:
        """Return the largest value of the interval of least squared error for these activations."""
        if self.signed:
            return best_threshold(strided_sample(x).abs(), (self.largest_code + 1) // 2)
        return best_threshold(strided_sample(x).clamp_min(0), self.largest_code)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to learn quantizers, chosen by `QuantConfig.method`.

    Attributes:
        name: what a `QuantConfig`, a recipe and a checkpoint call it.
        weights: makes the quantizer of a layer's weights, from its bits and the whole config.
        activations: makes a quantizer of activations, from its bits, whether they can be negative, and the config.
    """

    name: str
    weights: Callable[[int, QuantConfig], WeightQuantizer]
    activations: Callable[[int, bool, QuantConfig], ActivationQuantizer]
