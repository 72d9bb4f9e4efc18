"""Every set of kernels agrees with QLinearConv and Clip, byte for byte, on random layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from .kernel_sets import for_each_set, force
from .models import Convolution, random_convolution, run

BITS = [(1, 3), (3, 7), (7, 15), (1, 15), (7, 3), (2, 5)]  # largest weight code, largest input code


@pytest.mark.parametrize(("largest_code", "x_high"), BITS)
@for_each_set
def test_dense_layers_are_equal(
    kernel_set: str,
    operator: str,
    largest_code: int,
    x_high: int,
    library: Path,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
) -> None:
    force(kernel_set, monkeypatch)
    for case in range(30):
        convolution, x = random_convolution(rng, largest_code, x_high)
        model = replace(convolution, operator=operator).model()
        expected = run(model, x)
        found = run(model, x, library, threads=1 + case % 2)
        np.testing.assert_array_equal(found, expected, err_msg=f"case {case}: {convolution}, x {x.shape}")


@for_each_set
def test_groups_are_equal(
    kernel_set: str, operator: str, library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    force(kernel_set, monkeypatch)
    for case in range(30):
        largest_code, x_high = BITS[case % len(BITS)]
        convolution, x = random_convolution(rng, largest_code, x_high, groups=int(rng.choice([2, 3, 8])))
        model = replace(convolution, operator=operator).model()
        np.testing.assert_array_equal(run(model, x, library), run(model, x), err_msg=f"case {case}: {convolution}")


@for_each_set
def test_small_maps_of_many_channels_are_equal(
    kernel_set: str, operator: str, library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    force(kernel_set, monkeypatch)
    for width in range(1, 16):
        outputs, channels, groups = int(rng.integers(120, 300)), int(rng.integers(1, 40)), 1 + width % 2
        w = rng.integers(-1, 2, (outputs * groups, channels, 3, 3)) * rng.integers(1, 128, (outputs * groups, 1, 1, 1))
        convolution = Convolution(
            w=w.astype(np.int8),
            bias=rng.integers(-2000, 2000, outputs * groups).astype(np.int32),
            w_scale=rng.uniform(0.005, 0.015, outputs * groups).astype(np.float32),
            y_scale=float(rng.uniform(0.2, 1.0)),
            y_zero_point=int(rng.choice([0, 128])),
            pads=[1, 1, 1, 1],
            strides=[int(rng.choice([1, 2]))] * 2,
            group=groups,
        )
        x = rng.integers(0, 4, (2, channels * groups, int(rng.integers(1, 15)), width)).astype(np.uint8)
        model = replace(convolution, operator=operator).model()
        np.testing.assert_array_equal(run(model, x, library, threads=2), run(model, x), err_msg=f"width {width}")


@for_each_set
def test_depthwise_layers_are_equal(
    kernel_set: str, operator: str, library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    force(kernel_set, monkeypatch)
    for case in range(24):
        largest_code, x_high = BITS[case % len(BITS)]
        channels, outputs, size = int(rng.integers(1, 40)), int(rng.choice([1, 1, 2])), int(rng.choice([1, 3, 5, 7]))
        w = rng.integers(-largest_code, largest_code + 1, (channels * outputs, 1, size, size)) * (127 // largest_code)
        convolution = Convolution(
            w=w.astype(np.int8),
            bias=rng.integers(-2000, 2000, channels * outputs).astype(np.int32),
            w_scale=rng.uniform(0.005, 0.015, channels * outputs).astype(np.float32),
            y_scale=float(rng.uniform(0.05, 0.3) * size),
            high=int(rng.choice([3, 255])),
            x_high=x_high,
            pads=[int(rng.integers(0, size)) for _ in range(4)],
            strides=[int(rng.choice([1, 2, 3])) for _ in range(2)],
            dilations=[int(rng.choice([1, 1, 2])) for _ in range(2)],
            group=channels,
        )
        shape = (2, channels, int(rng.integers(13, 40)), int(rng.integers(13, 80)))
        x = rng.integers(0, x_high + 1, shape).astype(np.uint8)
        model = replace(convolution, operator=operator).model()
        np.testing.assert_array_equal(run(model, x, library), run(model, x), err_msg=f"case {case}: {convolution}")
        if case == 5:  # a code above what was proven sends the image to the scalar kernel
            x[0, -1, -1, -1] = 255
            np.testing.assert_array_equal(run(model, x, library, threads=2), run(model, x))
