"""QIL and ranges as pure functions: levels, ties, gradients against the equations and against gradcheck."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch._inductor.utils import run_and_get_code

from qil_deploy.quantizers import compile_quantizers, kernels, round_straight_through
from qil_deploy.quantizers.qil import quantize_activation, quantize_weight
from qil_deploy.quantizers.ranges import quantize_range

BITS = range(2, 9)
Array = NDArray[np.float64]


def double(value: float | list[float] | NDArray[Any], *, grad: bool = False) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=grad)


def weight_code(bits: int) -> int:
    return (1 << (bits - 1)) - 1


def activation_code(bits: int) -> int:
    return (1 << bits) - 1


def paper_weight(w: Array, c: float, d: float, gamma: float) -> tuple[Array, dict[str, Array]]:
    """QIL equations 3 and 4 with `alpha`, `beta`; the derivatives follow by the chain rule through both."""
    alpha, beta = 0.5 / d, 0.5 - 0.5 * c / d
    line = alpha * np.abs(w) + beta
    inside = (line > 0) & (line < 1)
    line = np.where(inside, line, 0.5)
    slope = np.sign(w) * gamma * line ** (gamma - 1) * inside
    derivatives = {
        "w": slope * alpha * np.sign(w),
        "c": slope * (-0.5 / d),
        "d": slope * (np.abs(w) * (-0.5 / d**2) + 0.5 * c / d**2),
        "gamma": np.sign(w) * line**gamma * np.log(line) * inside,
    }
    clipped = np.clip(alpha * np.abs(w) + beta, 0, 1)
    return np.sign(w) * clipped**gamma, derivatives


def paper_activation(x: Array, c: float, d: float) -> tuple[Array, dict[str, Array]]:
    """QIL equations 6 and 7: the transformer without sign and exponent."""
    alpha, beta = 0.5 / d, 0.5 - 0.5 * c / d
    line = alpha * x + beta
    inside = ((line > 0) & (line < 1)).astype(float)
    derivatives = {
        "x": inside * alpha,
        "c": inside * (-0.5 / d),
        "d": inside * (x * (-0.5 / d**2) + 0.5 * c / d**2),
    }
    return np.clip(line, 0, 1), derivatives


@pytest.mark.parametrize("bits", BITS)
def test_weight_takes_every_level_and_no_other(bits: int) -> None:
    q = weight_code(bits)
    w = double(np.linspace(-1.5, 1.5, 60 * q + 7))
    values = quantize_weight(w, double(0.5), double(0.5), None, q)
    np.testing.assert_array_equal(torch.unique(values).numpy(), np.arange(-q, q + 1) / q)


@pytest.mark.parametrize("bits", BITS)
def test_activation_takes_every_level_and_no_other(bits: int) -> None:
    q = activation_code(bits)
    x = double(np.linspace(-1.0, 2.0, 60 * q + 7))
    values = quantize_activation(x, double(0.5), double(0.5), q)
    np.testing.assert_array_equal(torch.unique(values).numpy(), np.arange(q + 1) / q)


@pytest.mark.parametrize(("low", "high"), [(0, 255), (-128, 127)])
def test_range_takes_every_level_and_no_other(low: int, high: int) -> None:
    step = 0.125
    x = double(np.arange(2 * low - 20, 2 * high + 20) * step / 2)
    codes = quantize_range(x, double(step), low, high) / step
    np.testing.assert_array_equal(torch.unique(codes).numpy(), np.arange(low, high + 1))


def exact_ties(q: int) -> Array:
    """The `t` in (0, 1) for which `t * q` is `k + 1/2` without a rounding error."""
    halves = np.arange(q) + 0.5
    t = halves / q
    ties = np.asarray(t[t * q == halves])
    assert len(ties) >= min(q, 0.7 * q)
    return ties


@pytest.mark.parametrize("bits", BITS)
def test_weight_rounds_ties_to_even(bits: int) -> None:
    q = weight_code(bits)
    t = exact_ties(q)
    for sign in (1, -1):
        codes = quantize_weight(double(sign * t), double(0.5), double(0.5), None, q) * q
        np.testing.assert_allclose(codes.numpy(), sign * 2 * np.rint(t * q / 2), rtol=1e-15)


@pytest.mark.parametrize("bits", BITS)
def test_activation_rounds_ties_to_even(bits: int) -> None:
    q = activation_code(bits)
    t = exact_ties(q)
    codes = quantize_activation(double(t), double(0.5), double(0.5), q) * q
    assert (np.rint(codes.numpy()) % 2 == 0).all()
    assert (np.abs(codes.numpy() - t * q) < 0.5 + 1e-9).all()


def test_range_rounds_ties_to_even() -> None:
    x = double((np.arange(-130, 130) + 0.5) * 0.25)
    codes = quantize_range(x, double(0.25), -128, 127) / 0.25
    np.testing.assert_array_equal(codes.numpy(), np.clip(np.rint(np.arange(-130, 130) + 0.5), -128, 127))


def test_straight_through_rounds_ties_to_even_and_keeps_the_gradient(rng: np.random.Generator) -> None:
    x = double(np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.3]), grad=True)
    y = round_straight_through(x)
    np.testing.assert_array_equal(y.detach().numpy(), [-2, -2, 0, 0, 2, 2, 0])
    upstream = rng.normal(size=7)
    y.backward(torch.tensor(upstream))
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), upstream)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_below_the_interval_is_pruned_and_above_is_clipped(bits: int, dtype: torch.dtype) -> None:
    c, d = (torch.tensor(value, dtype=dtype) for value in (0.5, 0.25))
    w = torch.tensor([-9.0, -0.76, -0.24, -1e-30, 0.0, 0.2, 0.76, 1e30], dtype=dtype)
    values = quantize_weight(w, c, d, torch.tensor(0.7, dtype=dtype), weight_code(bits))
    assert values.dtype == dtype
    assert values.tolist() == [-1, -1, 0, 0, 0, 0, 1, 1]
    values = quantize_activation(w, c, d, activation_code(bits))
    assert values.dtype == dtype
    assert values.tolist() == [0, 0, 0, 0, 0, 0, 1, 1]


def test_a_negative_pruning_threshold_lifts_activations_but_leaves_zero_weights_at_zero() -> None:
    c, d = double(0.25), double(0.75)  # interval [-0.5, 1]
    assert quantize_activation(double([-0.5, 0.0, 1.0]), c, d, 3).tolist() == [0, 1 / 3, 1]
    assert quantize_weight(double([-1e-9, 0.0, 1e-9]), c, d, None, 3).tolist() == [-1 / 3, 0, 1 / 3]


Intervals = st.tuples(st.floats(-0.5, 2.0), st.floats(0.05, 2.0))
Seeds = st.integers(0, 2**32 - 1)


@given(interval=Intervals, gamma=st.none() | st.floats(0.14, 7.3), bits=st.sampled_from(BITS), seed=Seeds)
def test_weight_equals_the_papers_equations(
    interval: tuple[float, float], gamma: float | None, bits: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    (c, d), q = interval, weight_code(bits)
    # Both forms of the transformer differ in the last bits: no points near a rounding boundary.
    w = rng.normal(0, 1.5, 200)
    w_hat, derivatives = paper_weight(w, c, d, gamma or 1.0)
    line = 0.5 / d * np.abs(w) + 0.5 - 0.5 * c / d
    away = np.abs(np.abs(q * w_hat) % 1 - 0.5) > 1e-9
    away &= ((line < -1e-9) | (line > 2e-4)) & (np.abs(line - 1) > 1e-9)
    w, upstream = w[away], rng.normal(size=away.sum())
    w_, c_, d_ = (double(value, grad=True) for value in (w, c, d))
    gamma_ = None if gamma is None else double(gamma, grad=True)
    value = quantize_weight(w_, c_, d_, gamma_, q)
    np.testing.assert_array_equal(value.detach().numpy(), np.rint(q * w_hat[away]) / q)
    value.backward(torch.tensor(upstream))
    expected = {name: upstream * derivative[away] for name, derivative in derivatives.items()}
    assert_gradients([w_, c_, d_], [expected["w"], expected["c"].sum(), expected["d"].sum()])
    if gamma_ is not None:
        assert_gradients([gamma_], [expected["gamma"].sum()])


@given(interval=Intervals, bits=st.sampled_from(BITS), seed=Seeds)
def test_activation_equals_the_papers_equations(interval: tuple[float, float], bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    (c, d), q = interval, activation_code(bits)
    x = rng.normal(0.5, 1.5, 200)
    x_hat, derivatives = paper_activation(x, c, d)
    line = 0.5 / d * x + 0.5 - 0.5 * c / d
    away = (np.abs(q * x_hat % 1 - 0.5) > 1e-9) & (np.abs(line) > 1e-9) & (np.abs(line - 1) > 1e-9)
    x, upstream = x[away], rng.normal(size=away.sum())
    x_, c_, d_ = (double(value, grad=True) for value in (x, c, d))
    value = quantize_activation(x_, c_, d_, q)
    np.testing.assert_array_equal(value.detach().numpy(), np.rint(q * x_hat[away]) / q)
    value.backward(torch.tensor(upstream))
    expected = {name: upstream * derivative[away] for name, derivative in derivatives.items()}
    assert_gradients([x_, c_, d_], [expected["x"], expected["c"].sum(), expected["d"].sum()])


@given(step=st.floats(1e-3, 10.0), signed=st.booleans(), seed=Seeds)
def test_range_equals_learned_step_size_equations(step: float, signed: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    low, high = (-128, 127) if signed else (0, 255)
    x = rng.normal(0, 150 * step, 200)
    upstream = rng.normal(size=200)
    x_, step_ = (double(value, grad=True) for value in (x, step))
    value = quantize_range(x_, step_, low, high)
    steps = x / step
    code = np.rint(steps)
    inside = (code >= low) & (code <= high)
    np.testing.assert_array_equal(value.detach().numpy(), step * np.clip(code, low, high))
    value.backward(torch.tensor(upstream))
    by_step = np.where(inside, code - steps, np.where(code < low, low, high))
    assert_gradients([x_, step_], [upstream * inside, (upstream * by_step).sum()])


def assert_gradients(tensors: list[Tensor], expected: list[Any]) -> None:
    for tensor, gradient in zip(tensors, expected, strict=True):
        assert tensor.grad is not None
        scale = max(1.0, float(np.abs(gradient).max(initial=0)))
        np.testing.assert_allclose(tensor.grad.numpy(), gradient, rtol=1e-9, atol=1e-9 * scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_quantized_in_float32(dtype: torch.dtype) -> None:
    values = torch.randn(500).to(dtype)
    c, d, gamma = (torch.tensor(value, requires_grad=True) for value in (0.4, 0.7, 1.3))
    quantizers: list[Callable[[Tensor], Tensor]] = [
        lambda x: quantize_weight(x, c, d, gamma, 127),
        lambda x: quantize_activation(x, c, d, 255),
        lambda x: quantize_range(x, d / 100, -128, 127),
    ]
    for quantizer in quantizers:
        results = []
        for x, autocast in ((values.clone(), True), (values.float(), False)):
            x.requires_grad_()
            with torch.autocast("cpu", dtype, enabled=autocast):
                y = quantizer(x)
            assert y.dtype is torch.float32
            gradients = torch.autograd.grad(y.square().sum(), [x, d])
            results.append([y, gradients[0].to(dtype), gradients[1]])
        assert all(torch.equal(half, full) for half, full in zip(*results, strict=True))


@pytest.mark.parametrize("gamma", [None, 1.7])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_blocks_layouts_and_compilation_change_nothing_but_last_bits(
    monkeypatch: pytest.MonkeyPatch, gamma: float | None, compiled: bool
) -> None:
    x = torch.randn(6, 20, 9, 7, dtype=torch.float64)
    upstream = torch.randn(7, 9, 20, 6, dtype=torch.float64).permute(3, 2, 1, 0)
    c, d = double(0.4, grad=True), double(0.7, grad=True)
    exponent = None if gamma is None else double(gamma, grad=True)
    known = [tensor for tensor in (c, d, exponent) if tensor is not None]
    quantizers: list[tuple[Callable[[Tensor], Tensor], list[Tensor]]] = [
        (lambda x: quantize_weight(x, c, d, exponent, 7), known),
        (lambda x: quantize_activation(x, c, d, 15), [c, d]),
        (lambda x: quantize_range(x, d / 9, -128, 127), [d]),
    ]
    for quantizer, scalars in quantizers:
        results = []
        for block, layout in ((1 << 20, torch.contiguous_format), (1000, torch.channels_last)):
            monkeypatch.setattr(kernels, "_BLOCK", block)
            compile_quantizers(compiled and layout is torch.channels_last)
            leaf = x.contiguous(memory_format=layout).requires_grad_()
            y = quantizer(leaf)
            assert y.is_contiguous(memory_format=layout)
            results.append([y, *torch.autograd.grad(y, [leaf, *scalars], upstream)])
        compile_quantizers(False)
        for whole, blocks in zip(*results, strict=True):
            torch.testing.assert_close(blocks, whole, rtol=1e-12, atol=1e-12)


def loops_in_compiled(function: Callable[..., object], *arguments: object) -> int:
    """Count the loops over a tensor in the compiler's output for the kernels that a function calls."""
    compile_quantizers()
    try:
        _, programs = run_and_get_code(function, *arguments)
    finally:
        compile_quantizers(False)
    return sum(line.lstrip().startswith("for(int64_t") for program in programs for line in program.splitlines())


def test_a_compiled_backward_pass_reads_its_tensors_as_often_as_a_forward_pass() -> None:
    """Its gradient and its sums are computed in one loop."""
    x = torch.randn(4, 5, 3, 3).requires_grad_()
    c, d = torch.tensor(0.4), torch.tensor(0.7)
    forward = loops_in_compiled(quantize_activation, x, c, d, 15)
    backward = loops_in_compiled(torch.autograd.grad, quantize_activation(x, c, d, 15), x, torch.randn_like(x))
    assert backward == forward > 0


COMPILED = """
import torch
from qil_deploy.quantizers import compile_quantizers
from qil_deploy.quantizers.ranges import quantize_range

torch.manual_seed(0)
x, s = torch.randn(4097, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)
expected = quantize_range(x, s, -7, 7)
compile_quantizers()
torch.testing.assert_close(quantize_range(x, s, -7, 7), expected, rtol=1e-12, atol=1e-12)
"""


def test_kernels_compiled_for_other_vector_instructions_are_not_loaded(tmp_path: Path) -> None:
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    for capability in ("avx512", "default"):  # a processor that lacks the first runs on the best it has
        program = [sys.executable, "-c", COMPILED]
        subprocess.run(program, check=True, env=environment | {"ATEN_CPU_CAPABILITY": capability})
