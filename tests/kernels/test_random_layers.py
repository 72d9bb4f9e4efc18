"""Every set of kernels computes what QLinearConv and Clip compute, byte for byte, on random layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from .kernel_sets import SETS, force
from .models import random_convolution, run

BITS = [(1, 3), (3, 7), (7, 15), (1, 15), (7, 3), (2, 5)]  # largest weight code, largest input code


@pytest.mark.parametrize(("largest_code", "x_high"), BITS)
@pytest.mark.parametrize("kernel_set", SETS)
def test_dense_layers_are_equal(
    kernel_set: str,
    largest_code: int,
    x_high: int,
    library: Path,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
) -> None:
    force(kernel_set, monkeypatch)
    for case in range(30):
        convolution, x = random_convolution(rng, largest_code, x_high)
        model = convolution.model()
        expected = run(model, x)
        found = run(model, x, library, threads=1 + case % 2)
        np.testing.assert_array_equal(found, expected, err_msg=f"case {case}: {convolution}, x {x.shape}")


@pytest.mark.parametrize("kernel_set", SETS)
def test_groups_are_equal(
    kernel_set: str, library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    force(kernel_set, monkeypatch)
    for case in range(30):
        largest_code, x_high = BITS[case % len(BITS)]
        convolution, x = random_convolution(rng, largest_code, x_high, groups=int(rng.choice([2, 3, 8])))
        model = convolution.model()
        np.testing.assert_array_equal(run(model, x, library), run(model, x), err_msg=f"case {case}: {convolution}")
