"""AVX2 kernels with sums in 16 bits, dense and depthwise: the largest possible sums, results that float cannot hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from .kernel_sets import force
from .models import Convolution, run, session

BITS = [(1, 3), (3, 7), (7, 15), (1, 63), (30, 63)]  # largest weight code, largest input code
DENSE, DEPTHWISE = "sums in 16 bits (AVX2)", "depthwise by channels (AVX2)"


def layer(rng: np.random.Generator, codes: NDArray[np.integer], x_high: int, **changes: object) -> Convolution:
    """Return a convolution of these weight codes with strides of 2, all but the last weight of each channel."""
    largest, outputs = int(np.abs(codes).max()), int(codes.shape[0])
    codes[:, -1, -1, -1] = 1  # or the codes would be taken for smaller ones with a larger multiplier
    multipliers = rng.integers(1, 50 // largest + 1, outputs)
    values: dict[str, object] = {
        "w": (codes * multipliers[:, None, None, None]).astype(np.int8),
        "bias": rng.integers(-2000, 2000, outputs).astype(np.int32),
        "w_scale": rng.uniform(0.005, 0.015, outputs).astype(np.float32),
        "y_scale": float(codes[0].size) * largest * x_high * 0.001,
        "y_zero_point": 128,
        "x_high": x_high,
        "strides": [2, 2],
        "pads": [1, 1, 1, 1],
    }
    return Convolution(**(values | changes))  # type: ignore[arg-type]  # the tests name fields


def check(convolution: Convolution, x: NDArray[np.uint8], kernel: str, library: Path) -> None:
    """Compare one run; require the intended kernel."""
    import qil_deploy_kernels

    living = session(convolution.model(), library, threads=2)
    assert f": {kernel}, " in qil_deploy_kernels.layers()[-1]
    np.testing.assert_array_equal(living.run(None, {"x": x})[0], run(convolution.model(), x))


@pytest.mark.parametrize(("largest", "x_high"), BITS)
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("sign", [-1, 1])
def test_no_sum_overflows(
    sign: int,
    size: int,
    largest: int,
    x_high: int,
    library: Path,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
) -> None:
    """Weights and codes are the largest possible; in each image, codes are nonzero where one channel's signs agree."""
    force("avx2", monkeypatch)
    channels = 3000 // size**2
    codes = rng.choice([-largest, largest], (40, channels, size, size))
    codes[0] = sign * largest
    codes[2:10] *= rng.random(codes[2:10].shape) < 0.3
    x = np.full((4, channels, 5, 6), x_high)
    for image, output in enumerate((2, 10, 11), start=1):
        x[image] *= codes[output, :, size // 2, size // 2, None, None] * (-1) ** output > 0
    check(layer(rng, codes, x_high), x.astype(np.uint8), DENSE, library)


@pytest.mark.parametrize(("largest", "x_high"), [(1, 3), (7, 15), (7, 63), (15, 43)])
def test_no_depthwise_sum_overflows(
    largest: int, x_high: int, library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    force("avx2", monkeypatch)
    for size in (1, 2, 3, 5):
        codes = rng.choice([-largest, largest], (50, 1, size, size))
        codes[::3] = largest
        codes[1::3] = -largest
        convolution = layer(rng, codes, x_high, group=50)
        check(convolution, np.full((1, 50, 9, 11), x_high, np.uint8), DEPTHWISE, library)


def test_depthwise_sums_that_words_cannot_hold_are_left_to_others(
    library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    force("avx2", monkeypatch)
    convolution = layer(rng, np.full((50, 1, 5, 5), 22), 63, group=50)  # 33327
    check(convolution, np.full((1, 50, 9, 11), 63, np.uint8), "scalar", library)


@pytest.mark.parametrize("bias", [0, 2**24, -(2**31), 2**31 - 1])
@pytest.mark.parametrize("y_scale", [1e-30, 1.0, 1e4])
def test_results_that_float_cannot_hold_are_equal(
    bias: int, y_scale: float, library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    force("avx2", monkeypatch)
    biases = np.where(rng.random(33) < 0.5, bias, rng.integers(-2000, 2000, 33)).astype(np.int32)
    x = rng.integers(0, 16, (1, 33, 9, 10)).astype(np.uint8)
    for channels, kernel in ((33, DENSE), (1, DEPTHWISE)):
        codes = rng.integers(-7, 8, (33, channels, 3, 3))
        convolution = layer(rng, codes, 15, bias=biases, y_scale=y_scale, group=33 // channels)
        check(convolution, x, kernel, library)
