"""Gradients of the quantizers: against numerical ones, finite where powers are not, and saved in little memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from qil_deploy.quantizers.qil import quantize_activation, quantize_weight, weight_codes_real
from qil_deploy.quantizers.ranges import quantize_range

Array = NDArray[np.float64]


def double(value: float | list[float] | NDArray[Any], *, grad: bool = False) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=grad)


@pytest.fixture
def without_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make rounding the identity, so that the rest is smooth and can be differentiated numerically."""
    monkeypatch.setattr(torch.Tensor, "round_", lambda tensor: tensor)
    monkeypatch.setattr(torch.Tensor, "round", lambda tensor: tensor)


def away_from_kinks(rng: np.random.Generator, c: float, d: float) -> Array:
    """Points well inside the interval, well below and well above it, of both signs, none near zero."""
    t = np.concatenate([rng.uniform(0.05, 0.95, 12), rng.uniform(1.1, 2, 4), rng.uniform(-2, -0.1, 4)])
    magnitudes = (c - d) + 2 * d * t
    return np.asarray(magnitudes[np.abs(magnitudes) > 0.05] * 1.0)


@pytest.mark.usefixtures("without_rounding")
@pytest.mark.parametrize("gamma", [None, 0.3, 1.0, 2.5])
@pytest.mark.parametrize(("c", "d"), [(0.6, 0.5), (0.5, 0.5), (0.3, 0.6), (2.0, 0.4)])
def test_weight_gradient_passes_gradcheck(rng: np.random.Generator, gamma: float | None, c: float, d: float) -> None:
    magnitudes = away_from_kinks(rng, c, d)
    w = magnitudes[magnitudes > 0] * rng.choice([-1, 1], (magnitudes > 0).sum())
    inputs = [double(value, grad=True) for value in (w, c, d)]
    if gamma is None:
        assert gradcheck(lambda w, c, d: quantize_weight(w, c, d, None, 7), *inputs)
    else:
        inputs.append(double(gamma, grad=True))
        assert gradcheck(lambda w, c, d, gamma: quantize_weight(w, c, d, gamma, 7), *inputs)


@pytest.mark.usefixtures("without_rounding")
@pytest.mark.parametrize(("c", "d"), [(0.6, 0.5), (0.5, 0.5), (-0.3, 0.6), (2.0, 0.4)])
def test_activation_gradient_passes_gradcheck(rng: np.random.Generator, c: float, d: float) -> None:
    inputs = [double(value, grad=True) for value in (away_from_kinks(rng, c, d), c, d)]
    assert gradcheck(lambda x, c, d: quantize_activation(x, c, d, 15), *inputs)


@pytest.mark.usefixtures("without_rounding")
def test_range_gradient_passes_gradcheck_where_rounding_is_the_identity() -> None:
    # Without rounding `code - x/s` vanishes inside; outside, the step's gradient is the bound itself.
    x = double(np.array([-90.0, -40.0, -3.2, 0.7, 31.0, 80.0]), grad=True)
    assert gradcheck(lambda x, s: quantize_range(x, s, -128, 127), x, double(0.3, grad=True))


def gradcheck(function: Callable[..., Tensor], *inputs: Tensor) -> bool:
    return bool(torch.autograd.gradcheck(function, inputs, eps=1e-7, atol=1e-6, rtol=1e-6))


@pytest.mark.parametrize("gamma", [np.exp(-2.0), 0.5, 1.0, np.exp(2.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_and_just_above_the_pruning_threshold(gamma: float, dtype: torch.dtype) -> None:
    w = torch.tensor([0.0, 1e-38, 1e-30, 1e-12, 1e-8, -1e-7, 0.25, 1.0, 7.0], dtype=dtype, requires_grad=True)
    c, d, g = (torch.tensor(value, dtype=dtype, requires_grad=True) for value in (0.5, 0.5, float(gamma)))
    value = quantize_weight(w, c, d, g, 7)
    value.sum().backward()
    for tensor in (w, c, d, g):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
    assert torch.isfinite(value).all()


def test_backward_keeps_nothing_but_the_input_and_scalars() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    c, d, gamma = (torch.tensor(value, requires_grad=True) for value in (0.4, 0.7, 1.3))
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        quantize_weight(x, c, d, gamma, 7)
        quantize_activation(x, c, d, 15)
        quantize_range(x, d, 0, 255)
    assert {tensor.data_ptr() for tensor in kept} == {tensor.data_ptr() for tensor in (x, c, d, gamma)}


@pytest.mark.parametrize("gamma", [np.exp(-2.0), 0.5, 1.0])
def test_real_codes_have_the_gradients_of_the_values_and_are_finite_at_zero(gamma: float) -> None:
    """A frozen model is trained through these."""
    w = double([0.0, 1e-30, -1e-8, 0.25, -0.6, 1.0, 7.0], grad=True)
    inputs = [w, *(double(value, grad=True) for value in (0.5, 0.5, float(gamma)))]
    c, d, g = inputs[1:]
    values = torch.autograd.grad(quantize_weight(w, c, d, g, 7).sum(), inputs)
    codes = torch.autograd.grad(weight_codes_real(w, c, d, g, 7).sum(), inputs)
    for value, code in zip(values, codes, strict=True):
        assert torch.isfinite(code).all()
        torch.testing.assert_close(code, 7 * value)
