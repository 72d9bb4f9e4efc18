"""3x3 convolutions of stride 1 by Winograd's algorithm: random ones, and those with the largest possible sums."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from .kernel_sets import force
from .models import Convolution, run, session, three_by_three, three_by_three_of

BITS = [(1, 3), (3, 7), (7, 15), (1, 15), (7, 3), (2, 5), (1, 63)]  # largest weight code, largest input code
OPERATORS = ("TernaryConv", "LowBitConv")

# Of the rows and columns of a window: weights of one sign, and those with which one position of a patch is largest.
PROFILES = np.array([(1, 1, 1), (1, -1, 1), (1, 0, -1), (-1, 1, 1)])


def check(convolution: Convolution, x: NDArray[np.uint8], library: Path, threads: int = 1) -> None:
    """Compare one run; require the intended kernel."""
    import qil_deploy_kernels

    model = convolution.model()
    living = session(model, library, threads)
    assert ": Winograd (" in qil_deploy_kernels.layers()[-1]
    found = living.run(None, {"x": x})[0]
    np.testing.assert_array_equal(found, run(model, x), err_msg=f"{convolution}, x {x.shape}")


@pytest.mark.parametrize("operator", OPERATORS)
def test_random_layers_are_equal(
    operator: str, library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    force("avx2", monkeypatch)
    for case in range(42):
        largest, x_high = (1, 3) if operator == "TernaryConv" else BITS[case % len(BITS)]
        convolution, x = three_by_three(rng, largest, x_high)
        convolution = replace(convolution, operator=operator)
        check(convolution, x, library, threads=1 + case % 2)


@pytest.mark.parametrize("width", range(1, 20))
def test_every_width_is_equal(
    width: int, library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    force("avx2", monkeypatch)
    for channels, outputs in ((32, 64), (33, 31)):  # of whole vectors and blocks, and not
        convolution = replace(
            three_by_three_of(rng, rng.integers(-7, 8, (outputs, channels, 3, 3)), 15), pads=[1, 1, 1, 1]
        )
        x = rng.integers(0, 16, (1, channels, 1 + width % 5, width)).astype(np.uint8)
        check(convolution, x, library)


@pytest.mark.parametrize(("largest", "x_high"), BITS)
def test_no_sum_overflows(
    largest: int, x_high: int, library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """Weights and codes are the largest possible, with signs and places that make one position of a patch largest."""
    force("avx2", monkeypatch)
    channels, outputs = 320, 64
    rows, columns = rng.integers(0, len(PROFILES), (2, outputs))
    windows = PROFILES[rows][:, :, None] * PROFILES[columns][:, None, :]
    codes = np.repeat(windows[:, None] * largest, channels, axis=1)
    codes[::8] *= rng.choice([-1, 1], codes[::8].shape)
    codes[::4] *= -1
    codes[:, -1, -1, -1] = 1  # or the codes would be taken for smaller ones with a larger multiplier
    full = three_by_three_of(rng, codes, x_high, largest_weight=50)
    convolution = replace(full, bias=np.zeros(outputs, np.int32), y_scale=full.y_scale * 30, y_zero_point=128)
    patterns = rng.integers(0, 2, (6, 1, 4, 4))
    patterns[0] = 1
    patterns[1] = np.outer((0, 1, 1, 0), (0, 1, 1, 0))
    patterns[2] = np.outer((1, 0, 0, 1), (1, 1, 0, 0)) % 2
    x = (np.tile(patterns, (1, channels, 3, 3)) * x_high).astype(np.uint8)
    check(convolution, x, library, threads=2)


def test_a_code_above_what_was_proven_is_not_taken_for_another(
    library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    force("avx2", monkeypatch)
    for width in (5, 16, 21):
        convolution = replace(three_by_three_of(rng, rng.integers(-1, 2, (16, 40, 3, 3)), 3), pads=[1, 1, 1, 1])
        x = rng.integers(0, 4, (2, 40, 3, width)).astype(np.uint8)
        x[1, 39, 2, width - 1] = 200
        check(convolution, x, library)


@pytest.mark.parametrize("bias", [0, 2**24, -(2**31), 2**31 - 1])
@pytest.mark.parametrize("y_scale", [1e-30, 1.0, 1e4])
def test_results_that_float_cannot_hold_are_equal(
    bias: int, y_scale: float, library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    force("avx2", monkeypatch)
    plain = three_by_three_of(rng, rng.integers(-7, 8, (32, 24, 3, 3)), 15)
    biases = np.where(rng.random(32) < 0.5, bias, rng.integers(-2000, 2000, 32)).astype(np.int32)
    x = rng.integers(0, 16, (1, 24, 9, 9)).astype(np.uint8)
    check(replace(plain, bias=biases, y_scale=y_scale), x, library)


def test_what_it_does_not_take_is_left_to_others(
    library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    import qil_deploy_kernels

    force("avx2", monkeypatch)
    plain = three_by_three_of(rng, rng.integers(-7, 8, (16, 16, 3, 3)), 15)
    for changed, reason in (
        (replace(plain, strides=[1, 2]), "takes 3x3 of stride 1"),
        (replace(plain, dilations=[2, 1]), "takes 3x3 of stride 1"),
        (replace(plain, w=plain.w[:15], bias=plain.bias[:15], w_scale=plain.w_scale[:15]), "fewer than 16 channels"),
        (replace(plain, x_high=31), "products of up to 217; takes 113"),
    ):
        living = session(changed.model(), library)
        assert f"not Winograd (AVX2): {reason}" in qil_deploy_kernels.layers()[-1]
        x = rng.integers(0, 16, (1, 16, 9, 9)).astype(np.uint8)
        np.testing.assert_array_equal(living.run(None, {"x": x})[0], run(changed.model(), x))
