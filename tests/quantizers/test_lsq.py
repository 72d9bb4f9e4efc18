"""LSQ as functions and modules: levels, gradients against NumPy and against the paper's own, steps that stay usable."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy.quantizers import QilActivationQuantizer, QilWeightQuantizer, kernels, round_straight_through
from qil_deploy.quantizers.lsq import LsqActivationQuantizer, LsqWeightQuantizer, codes_by_steps, quantize_by_steps

BITS = range(2, 9)
Array = NDArray[np.float64]


def double(value: float | Array, *, grad: bool = False) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=grad)


def limits(bits: int, kind: str) -> tuple[int, int, int, int]:
    """Return (low, high, offset, q) of weights, of activations, or of signed activations."""
    half = 1 << (bits - 1)
    return {
        "weights": (1 - half, half - 1, 0, half - 1),
        "activations": (0, 2 * half - 1, 0, 2 * half - 1),
        "signed": (-half, half - 1, -half, 2 * half - 1),
    }[kind]


KINDS = ("weights", "activations", "signed")


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_level_is_taken_and_no_other(bits: int, kind: str) -> None:
    low, high, offset, q = limits(bits, kind)
    x = double(np.linspace(low - 3.0, high + 3.0, 16 * (q + 4) + 1) * 0.25)  # ties among them
    values = quantize_by_steps(x, double(0.25), low, high, offset=offset, q=q)
    expected = (np.clip(np.rint(x.numpy() / 0.25), low, high) - offset) / q
    np.testing.assert_array_equal(values.numpy(), expected)
    np.testing.assert_array_equal(torch.unique(values).numpy(), np.arange(low - offset, high - offset + 1) / q)


@given(step=st.floats(1e-3, 10.0), bits=st.sampled_from(BITS), kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32))
def test_gradients_equal_those_of_the_equations(step: float, bits: int, kind: str, seed: int) -> None:
    low, high, offset, q = limits(bits, kind)
    rng = np.random.default_rng(seed)
    x, upstream = rng.normal(0, q * step, 200), rng.normal(size=200)
    steps = x / step
    inside = (steps > low) & (steps < high)
    factor = 0.37
    by_x = upstream * inside / (q * step)
    by_step = factor * (upstream * np.where(inside, -x / (q * step**2), 0.0)).sum()
    functions: list[tuple[Callable[[Tensor, Tensor], Tensor], float]] = [
        (lambda x, s: quantize_by_steps(x, s, low, high, offset=offset, q=q, step_factor=factor), 1.0),
        (lambda x, s: codes_by_steps(x, s, low, high, step_factor=factor), float(q)),
    ]
    for function, scale in functions:
        x_, step_ = double(x, grad=True), double(step, grad=True)
        y = function(x_, step_)
        by_x_found, by_step_found = torch.autograd.grad(y, [x_, step_], torch.tensor(upstream))
        np.testing.assert_allclose(by_x_found.numpy(), scale * by_x, rtol=1e-12)
        assert float(by_step_found) == pytest.approx(scale * by_step, rel=1e-9, abs=1e-9 * scale / step)


def paper(x: Tensor, s: Tensor, low: int, high: int) -> Tensor:
    """The paper's `s * code`, whose gradients autograd finds from a straight-through rounding."""
    return s * round_straight_through((x / s).clamp(low, high))


@pytest.mark.parametrize("kind", ["activations", "signed"])
def test_behind_batchnorm_the_loss_moves_steps_as_in_the_paper(rng: np.random.Generator, kind: str) -> None:
    x, w, v = (double(rng.normal(size=shape)) for shape in ((64, 12), (5, 12), (64, 5)))
    w_low, w_high, w_offset, w_q = limits(3, "weights")
    low, high, offset, q = limits(2, kind)
    gradients = []
    for papers in (True, False):
        s_w, s_x = double(0.4, grad=True), double(0.5, grad=True)
        if papers:
            y = F.linear(paper(x, s_x, low, high), paper(w, s_w, w_low, w_high))
        else:
            y = F.linear(
                quantize_by_steps(x, s_x, low, high, offset=offset, q=q),
                quantize_by_steps(w, s_w, w_low, w_high, offset=w_offset, q=w_q),
            )
        loss = (F.batch_norm(y, None, None, training=True, eps=1e-30) * v).sum()
        gradients.append(torch.stack(torch.autograd.grad(loss, [s_w, s_x])))
    assert float(gradients[0].abs().min()) > 1e-3
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-9)


def test_with_an_output_scale_the_step_and_the_scale_share_the_papers_gradient(rng: np.random.Generator) -> None:
    x, w, v = (double(rng.normal(size=shape)) for shape in ((64, 12), (5, 12), (64, 5)))
    low, high, offset, q = limits(3, "weights")
    s = double(0.4, grad=True)
    (whole,) = torch.autograd.grad((F.linear(x, paper(w, s, low, high)) * v).sum(), [s])
    scale = double(0.4 * q, grad=True)  # that of the largest code, where output scales start
    y = F.linear(x, quantize_by_steps(w, s, low, high, offset=offset, q=q)) * scale
    by_step, by_scale = torch.autograd.grad((y * v).sum(), [s, scale])
    torch.testing.assert_close(by_step + q * by_scale, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("signed", [False, True])
def test_the_interval_of_activations_is_what_the_codes_cover(bits: int, signed: bool) -> None:
    quantizer = LsqActivationQuantizer(bits, signed=signed)
    low, high, _, q = limits(bits, "signed" if signed else "activations")
    quantizer.set_largest(3.0)
    step = float(quantizer.step.detach())
    assert step == pytest.approx(3.0 / (-low if signed else high), rel=1e-6)
    assert quantizer.thresholds == pytest.approx((low * step, high * step), rel=1e-6)
    middles = step * torch.arange(low, high + 1)
    np.testing.assert_array_equal(quantizer(middles).detach().numpy(), np.arange(q + 1, dtype=np.float32) / q)


@pytest.mark.parametrize("bits", BITS)
def test_weights_start_as_with_qil_and_have_symmetric_codes(bits: int) -> None:
    weight = torch.randn(3000)
    lsq, qil = LsqWeightQuantizer(bits), QilWeightQuantizer(bits)
    lsq.initialize(weight)
    qil.initialize(weight)
    assert lsq.thresholds == pytest.approx(qil.thresholds, rel=1e-6)
    codes = lsq.codes_real(weight).round()
    assert torch.equal(codes / lsq.largest_code, lsq(weight))
    assert torch.equal(lsq(-weight), -lsq(weight))
    assert lsq(torch.tensor([-1e9, 1e9])).tolist() == [-1, 1]


def test_unsigned_activations_start_as_with_qil() -> None:
    x = torch.randn(3000).relu()
    lsq, qil = LsqActivationQuantizer(4), QilActivationQuantizer(4)
    assert lsq.initialize(x) == qil.initialize(x)


def test_the_gradient_of_a_step_has_the_papers_factor() -> None:
    """1 / sqrt(N * Q_P), where N counts the weights, or the activations of one image."""
    weights, activations = LsqWeightQuantizer(3), LsqActivationQuantizer(2, signed=True)
    x, high = torch.randn(6, 5, 4, 3), {weights: 3, activations: 1}
    for quantizer, count in ((weights, 360), (activations, 60)):
        q, low = quantizer.largest_code, -3 if quantizer is weights else -2
        quantizer.set_largest(1.5)
        (found,) = torch.autograd.grad(quantizer(x).sum(), [quantizer.log_largest])
        s = float(quantizer.step.detach())
        steps = x.double() / s
        whole = -float(steps[(steps > low) & (steps < high[quantizer])].sum()) / q
        assert float(found) == pytest.approx(whole / math.sqrt(count * high[quantizer]), rel=1e-4)


@pytest.mark.parametrize("largest", [0.0, -1.0, math.inf, math.nan])
def test_impossible_ends_are_refused(largest: float) -> None:
    with pytest.raises(ValueError, match="the end of an interval has to be positive and finite"):
        LsqWeightQuantizer(4).set_largest(largest)


@pytest.mark.parametrize("value", [-80.0, -20.0, 20.0, 80.0])
def test_everything_is_finite_whatever_the_parameter(value: float) -> None:
    x = torch.tensor([-1e30, -1.0, -1e-30, 0.0, 1e-30, 2.0, 1e30], requires_grad=True)
    for quantizer in (LsqWeightQuantizer(2), LsqActivationQuantizer(4), LsqActivationQuantizer(4, signed=True)):
        quantizer.log_largest.data.fill_(value)
        y = quantizer(x)
        assert y.isfinite().all()
        assert 0 < float(quantizer.distance.detach()) < math.inf
        (by_step,) = torch.autograd.grad(y.sum(), [quantizer.log_largest])
        assert by_step.isfinite()


def test_steps_stay_usable_under_a_hundred_steps_of_absurd_size(rng: np.random.Generator) -> None:
    weight = nn.Parameter(torch.tensor(rng.normal(size=(8, 27)), dtype=torch.float32))
    x, target = (torch.tensor(rng.normal(size=(32, n)), dtype=torch.float32) for n in (27, 8))
    weights, activations = LsqWeightQuantizer(3), LsqActivationQuantizer(3, signed=True)
    weights.initialize(weight)
    activations.set_largest(activations.initialize(x))
    optimizer = torch.optim.Adam([*weights.parameters(), *activations.parameters()], lr=0.3)
    for _ in range(100):
        optimizer.zero_grad()
        (F.linear(activations(x), weights(weight)) - target).square().mean().backward()
        optimizer.step()
        for quantizer in (weights, activations):
            lower, upper = quantizer.thresholds
            assert -math.inf < lower < upper < math.inf


def test_blocks_and_layouts_change_nothing_but_last_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(6, 20, 9, 7, dtype=torch.float64)
    upstream = torch.randn(7, 9, 20, 6, dtype=torch.float64).permute(3, 2, 1, 0)
    s = double(0.1, grad=True)
    results = []
    for block, layout in ((1 << 20, torch.contiguous_format), (1000, torch.channels_last)):
        monkeypatch.setattr(kernels, "_BLOCK", block)
        leaf = x.contiguous(memory_format=layout).requires_grad_()
        y = quantize_by_steps(leaf, s, -7, 7, offset=0, q=7)
        assert y.is_contiguous(memory_format=layout)
        results.append([y, *torch.autograd.grad(y, [leaf, s], upstream)])
    for whole, blocks in zip(*results, strict=True):
        torch.testing.assert_close(blocks, whole, rtol=1e-12, atol=1e-12)


def test_half_precision_is_quantized_in_float32() -> None:
    x = torch.randn(500).bfloat16()
    assert quantize_by_steps(x, torch.tensor(0.1), -7, 7, offset=0, q=7).dtype is torch.float32


def test_backward_keeps_nothing_but_the_input_and_the_step() -> None:
    x, s = torch.randn(4, 8, requires_grad=True), torch.tensor(0.7, requires_grad=True)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        quantize_by_steps(x, s, -7, 7, offset=0, q=7)
        codes_by_steps(x, s, -7, 7)
    assert {tensor.data_ptr() for tensor in kept} == {tensor.data_ptr() for tensor in (x, s)}
