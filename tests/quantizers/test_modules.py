"""Quantizers as modules: parameters that stay positive, thresholds, initialisation from data."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from qil_deploy.quantizers import (
    InputQuantizer,
    QilActivationQuantizer,
    QilWeightQuantizer,
    RangeQuantizer,
    best_threshold,
    interval_parameters,
)

BITS = range(2, 9)


@pytest.mark.parametrize("bits", BITS)
def test_largest_codes(bits: int) -> None:
    assert QilWeightQuantizer(bits).largest_code == 2 ** (bits - 1) - 1
    assert QilActivationQuantizer(bits).largest_code == 2**bits - 1


@pytest.mark.parametrize("quantizer", [QilWeightQuantizer(4), QilActivationQuantizer(4)])
@given(lower=st.floats(-10, 10), width=st.floats(1e-3, 100))
def test_thresholds_are_what_was_set(
    quantizer: QilWeightQuantizer | QilActivationQuantizer, lower: float, width: float
) -> None:
    quantizer.set_thresholds(lower, lower + width)
    # Float32 parameters: the error is relative to the largest of what is stored.
    tolerance = 1e-5 * (abs(lower) + width)
    assert quantizer.thresholds == pytest.approx((lower, lower + width), abs=tolerance)


@pytest.mark.parametrize(("lower", "upper"), [(1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (math.nan, 1.0)])
def test_impossible_thresholds_are_refused(lower: float, upper: float) -> None:
    with pytest.raises(ValueError, match="an interval needs finite thresholds, lower below upper; got"):
        QilWeightQuantizer(4).set_thresholds(lower, upper)


@pytest.mark.parametrize("value", [-80.0, -20.0, 0.0, 20.0, 80.0])
def test_distance_and_step_are_positive_whatever_the_parameter(value: float) -> None:
    interval, grid = QilActivationQuantizer(4), RangeQuantizer(signed=True)
    with torch.no_grad():
        interval.log_distance.fill_(value)
        grid.log_step.fill_(value)
    assert 0 < float(interval.distance.detach()) < math.inf
    assert 0 < float(grid.step.detach()) < math.inf


def test_gamma_is_one_with_slope_one_at_the_start_and_bounded_everywhere() -> None:
    quantizer = QilWeightQuantizer(4, train_gamma=True)
    assert quantizer.gamma_raw is not None
    assert quantizer.gamma is not None
    assert float(quantizer.gamma.detach()) == 1.0
    quantizer.gamma.backward()
    assert float(quantizer.gamma_raw.grad or 0) == 1.0
    for value, bound in ((1e30, math.exp(2)), (-1e30, math.exp(-2))):
        with torch.no_grad():
            quantizer.gamma_raw.fill_(value)
        assert float(quantizer.gamma.detach()) == pytest.approx(bound, rel=1e-6)
    assert QilWeightQuantizer(4).gamma is None


@pytest.mark.parametrize("raw", [-1e4, -3.0, 0.0, 3.0, 1e4])
def test_everything_is_finite_at_the_bounds_of_gamma(raw: float) -> None:
    quantizer = QilWeightQuantizer(2, train_gamma=True)
    quantizer.set_thresholds(0.25, 1.0)
    assert quantizer.gamma_raw is not None
    with torch.no_grad():
        quantizer.gamma_raw.fill_(raw)
    weight = torch.tensor([0.25, 0.25 + 1e-7, -0.25, 0.0, 0.5, -1.0, 3.0], requires_grad=True)
    value = quantizer(weight)
    value.square().sum().backward()
    for tensor in (weight, *quantizer.parameters()):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
    assert torch.isfinite(value).all()
    assert value[0] == value[2] == value[3] == 0


def test_intervals_stay_usable_under_a_hundred_steps_of_absurd_size(rng: np.random.Generator) -> None:
    """Failures that others report of QIL, an interval that collapses or a gamma that diverges, cannot occur."""
    weight = nn.Parameter(torch.tensor(rng.normal(size=(8, 27)), dtype=torch.float32))
    x = torch.tensor(rng.normal(size=(32, 27)), dtype=torch.float32)
    target = torch.tensor(rng.normal(size=(32, 8)), dtype=torch.float32)
    weights, activations = QilWeightQuantizer(3, train_gamma=True), QilActivationQuantizer(3)
    weights.initialize(weight)
    activations.set_thresholds(0.0, activations.initialize(x))
    parameters = [*weights.parameters(), *activations.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.3)
    for _ in range(100):
        optimizer.zero_grad()
        (nn.functional.linear(activations(x), weights(weight)) - target).square().mean().backward()
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in parameters)
        optimizer.step()
        for quantizer in (weights, activations):
            lower, upper = quantizer.thresholds
            assert math.isfinite(lower)
            assert math.isfinite(upper)
            assert lower < upper


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("train_gamma", [False, True])
def test_codes_real_round_to_the_codes(bits: int, train_gamma: bool) -> None:
    quantizer = QilWeightQuantizer(bits, train_gamma=train_gamma)
    quantizer.set_thresholds(-0.1, 0.9)
    if quantizer.gamma_raw is not None:
        with torch.no_grad():
            quantizer.gamma_raw.fill_(0.4)
    weight = torch.randn(500)
    codes = quantizer.codes_real(weight).round()
    assert torch.equal(codes / quantizer.largest_code, quantizer(weight))
    assert int(codes.abs().max()) == quantizer.largest_code


def squared_error(values: Tensor, threshold: float, q: int) -> float:
    values = values.double()
    quantized = threshold * (values / threshold).clamp(0, 1).mul(q).round() / q
    return float((values - quantized).square().sum())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", ["normal", "uniform", "outlier", "sparse"])
def test_best_threshold_is_never_worse_than_the_whole_range(bits: int, shape: str) -> None:
    values = {
        "normal": torch.randn(4000).abs(),
        "uniform": torch.rand(4000),
        "outlier": torch.cat([torch.rand(4000), torch.tensor([30.0])]),
        "sparse": torch.randn(4000).clamp_min(1.0) - 1.0,
    }[shape]
    q = 2**bits - 1
    threshold = best_threshold(values, q)
    largest = float(values.max())
    assert 0 < threshold <= largest * (1 + 1e-6)
    best = squared_error(values, threshold, q)
    assert best <= squared_error(values, largest, q) * (1 + 1e-5)
    # It is the best of all shares of the largest value on its grid.
    others = [squared_error(values, largest * share / 64, q) for share in range(1, 65)]
    assert best <= min(others) * (1 + 1e-5)


def test_low_bits_clip_normal_weights_and_high_bits_hardly() -> None:
    values = torch.randn(20000).abs()
    thresholds = [best_threshold(values, 2 ** (bits - 1) - 1) for bits in BITS]
    assert thresholds == sorted(thresholds)
    # Ternary: 1.22 standard deviations is the optimum for normal weights; half of that prunes.
    assert thresholds[0] == pytest.approx(1.22, abs=0.1)


def test_best_threshold_of_nothing_but_zeros_is_one() -> None:
    assert best_threshold(torch.zeros(10), 7) == 1.0


@pytest.mark.parametrize("unit", [2.0**-90, 2.0**-60, 1.0, 2.0**60, 2.0**120])
def test_best_threshold_is_the_same_share_in_every_unit(unit: float) -> None:
    """Squares of small and of large values are out of the range of float32."""
    values = torch.randn(1000).abs()
    assert best_threshold(values * unit, 7) == best_threshold(values, 7) * unit


@pytest.mark.parametrize("largest", [1e-45, 1e-42, 1e-31])
def test_values_whose_interval_would_have_no_reciprocal_count_as_zero(largest: float) -> None:
    weight = largest * torch.rand(8, 4)
    quantizer = QilWeightQuantizer(4)
    quantizer.initialize(weight)
    assert quantizer.thresholds == (0.0, 1.0)
    assert not quantizer(weight).any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_best_threshold_of_values_that_are_none_is_none(value: float) -> None:
    assert not math.isfinite(best_threshold(torch.tensor([1.0, value]), 7))


def test_best_threshold_scales_with_its_values_and_takes_large_tensors() -> None:
    values = torch.rand(200_000)
    small = best_threshold(values, 15)
    assert best_threshold(values * 1024, 15) == pytest.approx(1024 * small, rel=1e-6)


def test_range_covers_what_was_set_and_reads_signs() -> None:
    unsigned, signed = RangeQuantizer(signed=False), RangeQuantizer(signed=True)
    assert (unsigned.low, unsigned.high, unsigned.zero_point) == (0, 255, 0)
    assert (signed.low, signed.high, signed.zero_point) == (-128, 127, 128)
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0, 5.0])
    for quantizer in (unsigned, signed):
        quantizer.set_largest(2.0)
        assert float(quantizer(torch.tensor(9.0)).detach()) == pytest.approx(2.0, rel=1e-6)
    assert unsigned(x).min() == 0
    assert float(signed(x).detach().min()) == pytest.approx(-2.0 * 128 / 127, rel=1e-6)
    assert signed.initialize(torch.tensor([-4.0, 1.0])) > 2.0
    assert unsigned.initialize(torch.tensor([-4.0, 1.0])) <= 1.0


@pytest.mark.parametrize("zero_point", [0, 73, 128, 255])
def test_images_pass_the_input_quantizer_unchanged(zero_point: int) -> None:
    quantizer = InputQuantizer(1 / (255 * 0.353), zero_point)
    pixels = torch.arange(256, dtype=torch.float32)
    x = (pixels - zero_point) * quantizer.scale
    assert torch.equal(quantizer(x), x)
    assert torch.equal(quantizer.codes(x), pixels)
    assert quantizer.codes(torch.tensor([-1e6, 1e6])).tolist() == [0, 255]


def test_interval_parameters_are_those_of_quantizers_only() -> None:
    model = nn.Sequential(
        nn.Linear(3, 3),
        QilWeightQuantizer(4, train_gamma=True),
        QilActivationQuantizer(4),
        RangeQuantizer(signed=True),
    )
    assert len(interval_parameters(model)) == 3 + 2 + 1
    assert not {id(p) for p in interval_parameters(model)} & {id(p) for p in model[0].parameters()}


def test_repr_shows_bits_and_interval() -> None:
    quantizer = QilActivationQuantizer(3)
    quantizer.set_thresholds(-0.5, 1.5)
    assert repr(quantizer) == "QilActivationQuantizer(bits=3, interval=[-0.5, 1.5])"
    grid = RangeQuantizer(signed=True)
    grid.set_largest(12.7)
    assert repr(grid) == "RangeQuantizer(bits=8, range=[-12.8, 12.7])"
    assert repr(InputQuantizer(0.5, 3)) == "InputQuantizer(bits=8, scale=0.5, zero_point=3)"
