"""The gradient of the rounding, scaled element by element (EWGS): against NumPy, for every method, width and kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from qil_deploy.config import QuantConfig
from qil_deploy.errors import ConfigError
from qil_deploy.integers import freeze
from qil_deploy.network import calibrate, prepare
from qil_deploy.quantizers import (
    METHODS,
    IntervalQuantizer,
    QilWeightQuantizer,
    RangeQuantizer,
    WeightQuantizer,
    activation_quantizer,
    compile_quantizers,
    weight_quantizer,
)

if TYPE_CHECKING:
    from tests.trained_digits import Digits

BITS = range(2, 9)
# A method, and what is quantized: QIL's weights by a trained exponent, too.
CASES = [(method, kind) for method in METHODS for kind in ("weights", "activations", "signed")] + [("qil", "gamma")]
Array = NDArray[np.float64]


def quantizer_of(method: str, kind: str, bits: int, gradient_scaling: float) -> IntervalQuantizer:
    """Return a quantizer in float64, over about three quarters of a normal distribution."""
    config = QuantConfig(method=method, train_gamma=kind == "gamma", gradient_scaling=gradient_scaling)
    quantizer: IntervalQuantizer
    if kind in ("weights", "gamma"):
        quantizer = weight_quantizer(bits, config)
    else:
        quantizer = activation_quantizer(bits, config, signed=kind == "signed")
    quantizer.set_largest(1.2)
    if isinstance(quantizer, QilWeightQuantizer):
        quantizer.set_thresholds(0.15, 1.2)  # some weights are pruned
        if quantizer.gamma_raw is not None:
            quantizer.gamma_raw.data.fill_(-0.4)
    return quantizer.double()


def gradients(quantizer: IntervalQuantizer, x: Array, upstream: Array) -> list[Tensor]:
    """Return the gradients of `x` and of all parameters."""
    leaf = torch.tensor(x, requires_grad=True)
    return list(torch.autograd.grad(quantizer(leaf), [leaf, *quantizer.parameters()], torch.tensor(upstream)))


def real_codes(quantizer: IntervalQuantizer, x: Array) -> tuple[Array, Array]:
    """Return the codes before rounding, and their derivatives by `x`, by the equations of `contract`."""
    center, distance = float(quantizer.center.detach()), float(quantizer.distance.detach())
    lower, upper = center - distance, center + distance
    q, weights = quantizer.largest_code, isinstance(quantizer, WeightQuantizer)
    gamma = 1.0
    if isinstance(quantizer, WeightQuantizer) and quantizer.gamma is not None:
        gamma = float(quantizer.gamma.detach())
    line = ((np.abs(x) if weights else x) - lower) / (upper - lower)
    t = np.clip(line, 0, 1)
    slope = q * gamma * np.clip(t, 1e-4, 1) ** (gamma - 1) / (upper - lower) * ((line > 0) & (line < 1))
    return q * t**gamma * (np.sign(x) if weights else 1.0), slope


def example(quantizer: IntervalQuantizer, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Return inputs away from ties and from the ends of the interval, gradients, and their EWGS-scaled forms."""
    x = rng.normal(0, 1, 3000)
    real, _ = real_codes(quantizer, x)
    x = x[np.abs(real % 1 - 0.5) > 1e-9]
    real, _ = real_codes(quantizer, x)
    upstream = rng.normal(size=len(x))
    scaled = upstream * (1 + quantizer.gradient_scaling * np.sign(upstream) * (real - np.rint(real)))
    return x, upstream, scaled


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("method", "kind"), CASES)
@pytest.mark.parametrize("gradient_scaling", [0.2, 2.0])
def test_the_gradient_is_scaled_by_the_distance_to_the_code_in_steps(
    rng: np.random.Generator, method: str, kind: str, bits: int, gradient_scaling: float
) -> None:
    quantizer = quantizer_of(method, kind, bits, gradient_scaling)
    x, upstream, scaled = example(quantizer, rng)
    _, slope = real_codes(quantizer, x)
    found = gradients(quantizer, x, upstream)
    np.testing.assert_allclose(found[0].numpy(), scaled * slope / quantizer.largest_code, rtol=1e-7, atol=1e-12)
    assert not np.allclose(scaled * slope, upstream * slope, rtol=gradient_scaling / 50)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("method", "kind"), CASES)
def test_parameters_learn_from_the_scaled_gradient(rng: np.random.Generator, method: str, kind: str, bits: int) -> None:
    """By the chain rule: the scaled gradient is that of the rounding, which comes before all other steps."""
    quantizer = quantizer_of(method, kind, bits, 0.5)
    x, upstream, scaled = example(quantizer, rng)
    found = gradients(quantizer, x, upstream)
    quantizer.gradient_scaling = 0.0
    for own, expected in zip(found, gradients(quantizer, x, scaled), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_ends_of_the_interval_and_what_is_no_number_stay_as_they_are(method: str, kind: str) -> None:
    """Scaling works on finite codes: nothing outside the interval gets a gradient, and none becomes NaN."""
    x = np.array([-1e300, -7.0, -1.2, -0.3, 0.0, 0.3, 1.2, 7.0, 1e300])
    plain, scaled = (gradients(quantizer_of(method, kind, 3, factor), x, np.ones_like(x)) for factor in (0.0, 1.0))
    assert all(bool(torch.isfinite(gradient).all()) for gradient in scaled)
    assert torch.equal(plain[0] == 0, scaled[0] == 0)


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_values_do_not_depend_on_it(rng: np.random.Generator, method: str, kind: str) -> None:
    x = torch.tensor(rng.normal(size=500))
    assert torch.equal(quantizer_of(method, kind, 3, 0.0)(x), quantizer_of(method, kind, 3, 1.0)(x))


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_nothing_waits_for_the_device(method: str, kind: str) -> None:
    """Fake tensors have no values: any transfer to the host, which a captured CUDA graph forbids, would fail."""
    quantizer = quantizer_of(method, kind, 3, 0.5)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.randn(40, 3, dtype=torch.float64, requires_grad=True)
        torch.autograd.grad(quantizer(x).sum(), [x, *quantizer.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize(("method", "kind"), CASES)
def test_compiled_kernels_scale_alike(rng: np.random.Generator, method: str, kind: str) -> None:
    for bits, factor in ((2, 0.5), (4, 0.5), (4, 0.2)):
        quantizer = quantizer_of(method, kind, bits, factor)
        x, upstream, _ = example(quantizer, rng)
        expected = gradients(quantizer, x, upstream)
        compile_quantizers()
        try:
            found = gradients(quantizer, x, upstream)
        finally:
            compile_quantizers(False)
        for own, other in zip(found, expected, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize(("method", "kind"), CASES)
def test_on_a_gpu_it_scales_alike(rng: np.random.Generator, method: str, kind: str) -> None:
    quantizer = quantizer_of(method, kind, 3, 0.5)
    x, upstream, _ = example(quantizer, rng)
    expected = gradients(quantizer, x, upstream)
    quantizer.cuda()
    leaf = torch.tensor(x, device="cuda", requires_grad=True)
    found = torch.autograd.grad(quantizer(leaf), [leaf, *quantizer.parameters()], torch.tensor(upstream, device="cuda"))
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own.cpu(), other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_prepared_model_has_it_everywhere_but_in_its_8_bit_ranges_and_freezes_to_the_same(
    digits: Digits, method: str
) -> None:
    frozen = []
    for factor in (0.0, 0.4):
        config = QuantConfig(method=method, weight_bits=3, activation_bits=3, gradient_scaling=factor)
        model = prepare(digits.network, config, digits.images[:1], input_grid=digits.preprocessing)
        calibrate(model, digits.batches())
        quantizers = [module for module in model.modules() if isinstance(module, IntervalQuantizer)]
        learned = [quantizer for quantizer in quantizers if any(True for _ in quantizer.parameters())]
        assert {quantizer.gradient_scaling for quantizer in learned} == {factor}
        assert any(isinstance(module, RangeQuantizer) for module in model.modules())
        frozen.append(freeze(model).state_dict())
    assert all(torch.equal(frozen[0][name], frozen[1][name]) for name in frozen[0])


@pytest.mark.parametrize("factor", [-0.1, 2.01, float("nan"), float("inf")])
def test_factors_that_could_turn_a_gradient_around_are_refused(factor: float) -> None:
    with pytest.raises(ConfigError, match="gradient_scaling"):
        QuantConfig(gradient_scaling=factor)


def test_a_config_of_before_is_plain() -> None:
    assert QuantConfig.model_validate_json('{"weight_bits": 3}').gradient_scaling == 0.0
