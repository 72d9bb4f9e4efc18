"""Learned step size quantization (LSQ; Esser et al., ICLR 2020), to compare learned intervals with.

    value = s * clip(rint(x / s), low, high)        low-bit weights: -q..q      low-bit activations: 0..q

The step `s` of each tensor is learned like an interval, by the same optimizer at the same rate. Everything else (where
quantizers stand, first and last layer, residual stream, initialisation of activations from data) stays as it is.
Steps of weights begin at `2 mean|w| / sqrt(q)`, as in the paper (section 2.1); the paper's factor on the gradient of
`s` has no effect under Adam.
"""

from __future__ import annotations

import math

import torch
from torch import fx

from qil_deploy.network import QuantConv2d, QuantLinear
from qil_deploy.quantizers import ActivationQuantizer, RangeQuantizer, WeightQuantizer
from qil_deploy.training.recipe import StageSection
from qil_deploy.training.run import Run


class StepQuantizer(RangeQuantizer):
    """Codes `low..high` with a learned step."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__(signed=low < 0)
        self.low, self.high = low, high


class LsqRun(Run):
    """A run whose inner layers have learned steps in place of learned intervals."""

    def prepare(self, model: torch.nn.Module, stage: StageSection, example: torch.Tensor) -> fx.GraphModule:
        """Return a float network with the quantizers of a stage in it."""
        prepared = super().prepare(model, stage, example)
        use_learned_steps(prepared, stage.weight_bits)
        return prepared


def use_learned_steps(model: fx.GraphModule, weight_bits: int) -> None:
    """Replace the interval quantizers of a prepared model, in place; those of other widths (first, last layer) stay."""
    for name, module in list(model.named_modules()):
        if isinstance(module, ActivationQuantizer):
            half = (module.largest_code + 1) // 2
            limits = (-half, half - 1) if module.signed else (0, module.largest_code)
            model.set_submodule(name, StepQuantizer(*limits))
        elif isinstance(module, QuantConv2d | QuantLinear) and module.weight_quantizer.bits == weight_bits:
            model.set_submodule(f"{name}.weight_quantizer", _for_weights(module.weight_quantizer, module.weight))


@torch.no_grad()
def _for_weights(replaced: WeightQuantizer, weight: torch.Tensor) -> StepQuantizer:
    q = replaced.largest_code
    quantizer = StepQuantizer(-q, q)
    quantizer.log_step.fill_(math.log(2 * float(weight.abs().mean()) / math.sqrt(q)))
    return quantizer
