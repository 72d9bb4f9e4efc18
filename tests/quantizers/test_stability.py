"""Gamma and intervals trained on real images at ten times the usual rate, and with enormous gradients."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qil_deploy.integers.freeze_model import freeze
from qil_deploy.network.calibration import calibrate
from qil_deploy.quantizers import QilWeightQuantizer, interval_parameters
from qil_deploy.training.optimizers import make_optimizers
from qil_deploy.training.recipe_sections import OptimizerSection

if TYPE_CHECKING:
    from tests.trained_digits import Digits

STEPS = 300
USUAL_RATE = OptimizerSection(epochs=1).interval_learning_rate


def train(model: nn.Module, digits: Digits, *, steps: int, gradient_factor: float) -> list[float]:
    """Take steps at ten times the usual rate of intervals, half of them with multiplied gradients; return losses."""
    section = OptimizerSection(epochs=1, learning_rate=0.02, interval_learning_rate=10 * USUAL_RATE)
    optimizers = make_optimizers(model.train(), section)
    intervals = interval_parameters(model)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        chosen = torch.randint(0, 1024, (32,), generator=generator)
        loss = F.cross_entropy(model(digits.images[chosen]), digits.labels[chosen])
        model.zero_grad(set_to_none=True)
        loss.backward()
        if torch.rand((), generator=generator) < 0.5:
            for parameter in intervals:
                assert parameter.grad is not None
                parameter.grad.mul_(gradient_factor)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(float(loss.detach()))
        assert all(bool(parameter.detach().isfinite().all()) for parameter in model.parameters())
    assert all(math.isfinite(loss) for loss in losses)
    return losses


def gammas(model: nn.Module) -> list[float]:
    found = [module.gamma for module in model.modules() if isinstance(module, QilWeightQuantizer)]
    return [float(gamma.detach()) for gamma in found if gamma is not None]


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("gradient_factor", [1.0, 1e4])
def test_gamma_trains_at_ten_times_the_usual_rate(digits: Digits, bits: int, gradient_factor: float) -> None:
    model = digits.prepare(bits, train_gamma=True)
    calibrate(model, digits.batches())
    losses = train(model, digits, steps=STEPS, gradient_factor=gradient_factor)
    assert len(gammas(model)) == 5
    assert all(math.exp(-2) <= gamma <= math.exp(2) for gamma in gammas(model))
    assert max(abs(gamma - 1) for gamma in gammas(model)) > 0.05
    # It still learns.
    assert sum(losses[-50:]) < 0.7 * sum(losses[:50])


def test_gamma_trains_in_a_frozen_model_too(digits: Digits) -> None:
    model = digits.prepare(3, train_gamma=True)
    calibrate(model, digits.batches())
    quantizer = model.get_submodule("conv1.weight_quantizer")
    assert isinstance(quantizer, QilWeightQuantizer)
    assert quantizer.gamma_raw is not None
    with torch.no_grad():
        quantizer.gamma_raw.fill_(-10.0)
        layer_weight = model.get_parameter("conv1.weight")
        layer_weight.view(-1)[:5] = torch.tensor([0.0, 1e-38, -1e-30, 1e-12, -1e-8])
    frozen = freeze(model)
    train(frozen, digits, steps=40, gradient_factor=1e4)
    assert all(math.exp(-2) <= gamma <= math.exp(2) for gamma in gammas(frozen))
