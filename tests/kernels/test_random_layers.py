"""Every set of kernels computes what QLinearConv and Clip compute, byte for byte, on random layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from .models import random_convolution, run

SETS = ["scalar", "avx512vbmi"]
BITS = [(1, 3), (3, 7), (7, 15), (1, 15), (7, 3), (2, 5)]  # largest weight code, largest input code


def run_with(kernel_set: str, monkeypatch: pytest.MonkeyPatch, library: Path) -> Path:
    """Force a set of kernels, or skip the test where this processor lacks its instructions."""
    qil_deploy_kernels = pytest.importorskip("qil_deploy_kernels")
    lines = dict(line.split(": ", 1) for line in qil_deploy_kernels.explain().splitlines())
    if lines.get(kernel_set, "the processor lacks it").startswith("the processor lacks"):
        pytest.skip(f"{kernel_set}: {lines.get(kernel_set, 'a set of another architecture')}")
    monkeypatch.setenv("QIL_DEPLOY_KERNELS", kernel_set)
    return library


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
    run_with(kernel_set, monkeypatch, library)
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
    run_with(kernel_set, monkeypatch, library)
    for case in range(30):
        largest_code, x_high = BITS[case % len(BITS)]
        convolution, x = random_convolution(rng, largest_code, x_high, groups=int(rng.choice([2, 3, 8])))
        model = convolution.model()
        np.testing.assert_array_equal(run(model, x, library), run(model, x), err_msg=f"case {case}: {convolution}")
