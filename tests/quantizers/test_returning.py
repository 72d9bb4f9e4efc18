"""The gradient of weights outside their interval: against NumPy, and its effect on weights in training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from qil_deploy.config import QuantConfig
from qil_deploy.integers import freeze
from qil_deploy.network import calibrate, prepare
from qil_deploy.quantizers import (
    METHODS,
    QilWeightQuantizer,
    WeightQuantizer,
    compile_quantizers,
    weight_quantizer,
)
from tests.trained_digits import Digits

CASES = [(method, gamma) for method in METHODS for gamma in (False, True) if method == "qil" or not gamma]


def quantizer_of(method: str, bits: int, *, gamma: bool, returning: bool, scaling: float = 0.0) -> WeightQuantizer:
    """Return a quantizer in float64; QIL's interval is [0.15, 1.2], that of others [0, 1.2]."""
    config = QuantConfig(method=method, train_gamma=gamma, returning_weights=returning, gradient_scaling=scaling)
    quantizer = weight_quantizer(bits, config)
    quantizer.set_largest(1.2)
    if isinstance(quantizer, QilWeightQuantizer):
        quantizer.set_thresholds(0.15, 1.2)
        if quantizer.gamma_raw is not None:
            quantizer.gamma_raw.data.fill_(-0.4)
    return quantizer.double()


def gradients(quantizer: WeightQuantizer, w: Tensor, upstream: Tensor, *, codes: bool = False) -> list[Tensor]:
    """Return the gradients of the weights and of all parameters."""
    leaf = w.clone().requires_grad_()
    result = quantizer.codes_real(leaf) if codes else quantizer(leaf)
    return list(torch.autograd.grad(result, [leaf, *quantizer.parameters()], upstream))


@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize("scaling", [0.0, 0.2])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("method", "gamma"), CASES)
def test_outside_the_gradient_passes_by_the_mean_slope_and_all_else_is_the_methods(
    rng: np.random.Generator, method: str, gamma: bool, bits: int, scaling: float, codes: bool
) -> None:
    plain, returning = (
        quantizer_of(method, bits, gamma=gamma, returning=given, scaling=scaling) for given in (False, True)
    )
    w, upstream = (torch.tensor(rng.normal(size=3000)) for _ in range(2))
    assert torch.equal(plain(w), returning(w))
    assert torch.equal(plain.codes_real(w), returning.codes_real(w))
    expected = gradients(plain, w, upstream, codes=codes)
    found = gradients(returning, w, upstream, codes=codes)
    for own, other in zip(found[1:], expected[1:], strict=True):
        assert torch.equal(own, other)
    lower, upper = plain.thresholds
    magnitudes = np.abs(w.numpy())
    outside = (magnitudes < lower) | (magnitudes >= upper)
    slope = (plain.largest_code if codes else 1) / (upper - lower)
    assert 0.1 < outside.mean() < 0.5
    assert not expected[0].numpy()[outside].any()
    np.testing.assert_allclose(found[0].numpy()[outside], upstream.numpy()[outside] * slope, rtol=1e-12, atol=0)
    np.testing.assert_array_equal(found[0].numpy()[~outside], expected[0].numpy()[~outside])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("start", [0.05, 5.0])
def test_a_weight_that_left_its_interval_returns_to_the_code_that_the_loss_asks_for(method: str, start: float) -> None:
    """Pruned ones cross zero, clipped ones come in from far; without this gradient neither ever moves."""
    for returning in (True, False):
        quantizer = quantizer_of(method, 2, gamma=False, returning=returning)
        weight = torch.full((4,), start, dtype=torch.float64, requires_grad=True)
        before = quantizer(weight).detach()
        optimizer = torch.optim.SGD([weight], lr=0.05)
        for _ in range(400):
            optimizer.zero_grad()
            (quantizer(weight) + 1.0).square().sum().backward()  # asks for the code -1
            optimizer.step()
        moves = returning or (method == "lsq" and start < 1)  # whose interval begins at 0
        assert torch.equal(quantizer(weight).detach(), -torch.ones_like(weight) if moves else before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gradients_are_finite_and_have_the_type_of_the_weights(dtype: torch.dtype) -> None:
    quantizer = quantizer_of("qil", 2, gamma=False, returning=True).float()
    weight = torch.tensor([-6e4, -1.2, -0.15, 0.0, 0.1, 0.15, 1.2, 6e4], dtype=dtype, requires_grad=True)
    quantizer(weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == dtype
    assert bool(weight.grad.isfinite().all())


@pytest.mark.parametrize("method", METHODS)
def test_a_prepared_model_has_it_and_freezes_to_the_same(digits: Digits, method: str) -> None:
    frozen = []
    for returning in (False, True):
        config = QuantConfig(method=method, weight_bits=2, activation_bits=2, returning_weights=returning)
        model = prepare(digits.network, config, digits.images[:1], input_grid=digits.preprocessing)
        calibrate(model, digits.batches())
        found = {module.returning for module in model.modules() if isinstance(module, WeightQuantizer)}
        assert found == {returning}
        frozen.append(freeze(model).state_dict())
    assert all(torch.equal(frozen[0][name], frozen[1][name]) for name in frozen[0])


def test_a_config_of_before_has_it_not() -> None:
    assert not QuantConfig.model_validate_json('{"weight_bits": 3}').returning_weights


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_compiled_and_block_by_block_it_is_the_same(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    w, upstream = (torch.tensor(rng.normal(size=(40, 5, 3, 3))) for _ in range(2))
    quantizer = quantizer_of(method, 2, gamma=False, returning=True)
    expected = gradients(quantizer, w, upstream)
    monkeypatch.setattr("qil_deploy.quantizers.kernels._BLOCK", 256)
    found = [gradients(quantizer, w, upstream)]
    last = torch.channels_last
    found.append(gradients(quantizer, w.contiguous(memory_format=last), upstream.contiguous(memory_format=last)))
    compile_quantizers()
    try:
        found.append(gradients(quantizer, w, upstream))
    finally:
        compile_quantizers(False)
    for others in found:
        for own, other in zip(others, expected, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)
