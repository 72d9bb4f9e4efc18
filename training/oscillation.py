"""Weights that oscillate between two codes: counted, frozen, or dampened (Nagel et al., ICML 2022).

With the straight-through gradient a weight whose best value lies between two codes is pushed back and forth over the
boundary between them; which of them the last step leaves, and BatchNorm has seen, is chance. `W` is the
code of a weight after a step, `m` the momentum:

    o = 1 where W changed, and in the other direction than at its last change, otherwise 0
    frequency = (1 - m) * frequency + m * o        average = (1 - m) * average + m * W

`freeze` fixes each weight whose frequency passes a threshold at the code nearest to its average. The interval of its
layer moves on; so after each step a frozen weight is put at the present centre of that code:

    |w| = l + 2d * (|W| / q)**(1/gamma)        l, d, gamma, q: of the layer's quantizer (`quantizers.contract`)

`dampen` adds `weight * sum((w - w_hat)**2)` to the loss, over the weights inside their interval, where `w_hat` is the
centre of a weight's present code and takes no gradient. In the unit of weights the pull is that of a weight decay
towards `w_hat`, as strong in every layer.

For the first quarter of a phase the threshold keeps its start value and nothing is dampened; then the threshold goes to
its end value, and the weight of the dampening from 0 to its largest, along half a cosine. Defaults are those of the
authors' program; they count and freeze weights of at most 4 bits, as those of more have codes too close to settle on
one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from qil_deploy.errors import ConfigError
from qil_deploy.network import AveragingConv2d, QuantConv2d, QuantLayer, QuantLinear, weight_to_quantize
from qil_deploy.quantizers import WeightQuantizer

from .recipe_sections import (
    OSCILLATION_DAMPENING,
    OSCILLATION_MOMENTUM,
    OSCILLATION_THRESHOLD,
    OptimizerSection,
    StageSection,
)

Control = Literal["count", "freeze", "dampen"]

MAX_BITS = 4

OSCILLATING = 0.005
"""A weight with a higher frequency counts as oscillating, as in the paper's tables."""
_ANNEALING_BEGINS = 0.25  # as a share of the phase


@dataclass(frozen=True, kw_only=True)
class OscillationCount:
    """Number of watched weights, and the shares of them, in [0, 1], that oscillate and that are frozen."""

    weights: int
    oscillating: float
    frozen: float


class Oscillation:
    """Watches the codes of a model's weights during training, and freezes or dampens those that oscillate.

        oscillation = Oscillation(model, "freeze")
        for step in range(steps):
            oscillation.set_progress(step / steps)
            loss = ... + oscillation.penalty()
            ...
            optimizer.step()
            oscillation.update()

    `penalty` and `update` are operations on tensors only, on the device of the weights: nothing waits for the device,
    and a CUDA graph may hold them (`set_progress` goes before each replay). Several processes with the same
    weights keep the same state.

    Args:
        model: prepared, on its device.
        control: `count` changes nothing.
        momentum: of both moving averages; keep it two or three times below the threshold, as one change of direction
            adds so much to a frequency.
        threshold: frequency above which a weight is frozen, at the start and at the end.
        dampening: largest weight of the penalty, at the end.
        max_bits: weights of more bits are skipped.

    Raises:
        ConfigError: the model has no such trainable weights.
    """

    def __init__(
        self,
        model: nn.Module,
        control: Control = "count",
        *,
        momentum: float = OSCILLATION_MOMENTUM,
        threshold: tuple[float, float] = OSCILLATION_THRESHOLD,
        dampening: float = OSCILLATION_DAMPENING,
        max_bits: int = MAX_BITS,
    ) -> None:
        self.control, self.momentum = control, momentum
        self.thresholds, self.dampening = threshold, dampening
        self.layers = _watched_layers(model, max_bits)
        if not self.layers:
            raise ConfigError(
                f"there is no oscillation to {control}: no layer has trained weights of at most {max_bits} bits."
            )
        # One tensor for all layers, so that a step is a few operations however many there are.
        codes = self._present_codes()
        self.codes = codes.to(torch.int8)
        self.direction = torch.zeros_like(self.codes)
        self.frequency = torch.zeros_like(codes)
        self.average = codes
        self.frozen = torch.zeros_like(self.codes, dtype=torch.bool)
        self.threshold, self.weight = torch.zeros_like(codes[0]), torch.zeros_like(codes[0])
        self.set_progress(0.0)

    def set_progress(self, share: float) -> None:
        """Set threshold and weight of the penalty for a share of the phase, from 0 to 1."""
        late = max(0.0, share - _ANNEALING_BEGINS) / (1.0 - _ANNEALING_BEGINS)
        risen = 0.5 * (1.0 - math.cos(math.pi * late))
        first, last = self.thresholds
        self.threshold.fill_(first + risen * (last - first))
        self.weight.fill_(risen * self.dampening)

    def penalty(self) -> Tensor:
        """Return the penalty that is added to the loss, a scalar; 0 unless weights are dampened."""
        if self.control != "dampen":
            return torch.zeros_like(self.weight)
        return self.weight * torch.stack([_distance_to_centers(layer) for layer in self.layers]).sum()

    @torch.no_grad()
    def update(self) -> None:
        """Record the codes after a step of the optimizer, and reset frozen weights to theirs."""
        present = torch.where(self.frozen, self.codes, self._present_codes())
        change = (present - self.codes).sign_()
        self.frequency.lerp_((change * self.direction < 0).to(self.frequency.dtype), self.momentum)
        self.average.lerp_(present, self.momentum)
        self.direction.copy_(torch.where(change != 0, change, self.direction))
        if self.control == "freeze":
            due = (self.frequency > self.threshold) & ~self.frozen
            present = torch.where(due, self.average.round(), present)
            self.frozen |= due
        self.codes.copy_(present)
        if self.control == "freeze":
            self._hold()

    def count(self) -> OscillationCount:
        """Count the weights that oscillate and those that are frozen; waits for the device."""
        oscillating = (self.frequency > OSCILLATING) & ~self.frozen
        return OscillationCount(
            weights=len(self.codes),
            oscillating=float(oscillating.double().mean()),
            frozen=float(self.frozen.double().mean()),
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything that `update` changes."""
        names = ("codes", "direction", "frequency", "average", "frozen")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state.

        Raises:
            ValueError: it is not one of these weights.
        """
        own = self.state_dict()
        if state.keys() != own.keys():
            raise ValueError(f"of oscillation it keeps {', '.join(sorted(state)) or 'nothing'}")
        for name, tensor in own.items():
            found = state[name]
            if found.shape != tensor.shape or found.dtype != tensor.dtype:
                raise ValueError(f"'{name}' of oscillation is {found.dtype} {list(found.shape)}")
            tensor.copy_(found)

    @torch.no_grad()
    def _present_codes(self) -> Tensor:
        """Return the codes of all weights, as floats [weights]."""
        real = [layer.weight_quantizer.codes_real(weight_to_quantize(layer)).flatten() for layer in self.layers]
        return torch.cat(real).round_()

    def _hold(self) -> None:
        """Put each frozen weight at the centre of its code."""
        sizes = [layer.weight.numel() for layer in self.layers]
        for layer, codes, frozen in zip(self.layers, self.codes.split(sizes), self.frozen.split(sizes), strict=True):
            code = codes.view(layer.weight.shape).to(layer.weight.dtype)
            center = code.sign() * _magnitude(layer.weight_quantizer, code.abs())
            if layer.channel_sizes is not None:
                center *= layer.channel_sizes
            layer.weight.copy_(torch.where(frozen.view(layer.weight.shape), center, layer.weight))


def oscillation_of(model: nn.Module, section: OptimizerSection) -> Oscillation | None:
    """Return the treatment of oscillation in a section of a recipe; None if there is none.

    Raises:
        ConfigError: it asks for what the model lacks.
    """
    if not isinstance(section, StageSection) or section.oscillation == "none":
        return None
    return Oscillation(
        model,
        section.oscillation,
        momentum=section.oscillation_momentum,
        threshold=section.oscillation_threshold,
        dampening=section.oscillation_dampening,
    )


def _watched_layers(model: nn.Module, max_bits: int) -> list[QuantLayer]:
    layers = [module for module in model.modules() if isinstance(module, QuantConv2d | QuantLinear)]
    return [
        layer
        for layer in layers
        if not isinstance(layer, AveragingConv2d)
        and layer.weight.requires_grad
        and layer.weight_quantizer.bits <= max_bits
    ]


def _magnitude(quantizer: WeightQuantizer, code: Tensor) -> Tensor:
    """Return the magnitude in the middle of each code from 0 to q; never below 0, where an interval may begin."""
    position = code / quantizer.largest_code
    if quantizer.gamma is not None:
        position = position ** (1.0 / quantizer.gamma)
    center, distance = quantizer.center, quantizer.distance
    return (position * (2.0 * distance) + (center - distance)).clamp_min_(0.0)


def _distance_to_centers(layer: QuantLayer) -> Tensor:
    """Return the sum of the squared distances of a layer's weights to their codes, differentiable by the weights."""
    with torch.no_grad():
        weight = weight_to_quantize(layer)
        real = layer.weight_quantizer.codes_real(weight)
        code = real.round()
        target = weight.sign() * _magnitude(layer.weight_quantizer, code.abs())
        if layer.channel_sizes is not None:
            target *= layer.channel_sizes
        target = torch.where(real == code, layer.weight, target)  # pruned and clipped weights among them
    return (layer.weight - target).square().sum()
