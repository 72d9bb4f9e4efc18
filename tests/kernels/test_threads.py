"""Many threads may run one session at once, with the library's own threads beside them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from .kernel_sets import for_each_set, force
from .models import random_convolution, run, session, without_constant


@for_each_set
def test_concurrent_runs_are_equal(
    kernel_set: str, operator: str, library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    force(kernel_set, monkeypatch)
    layer, x = random_convolution(rng, 1, 3)
    model = replace(layer, operator=operator).model()
    images = [np.roll(x, shift, axis=3) for shift in range(8)]
    images[5] = images[5] + np.uint8(250)  # codes that send the run to the scalar kernel
    expected = [run(model, image) for image in images]
    living = session(model, library, threads=2)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: living.run(None, {"x": images[i % 8]})[0], range(96)))
    for i, output in enumerate(found):
        np.testing.assert_array_equal(output, expected[i % 8])


@for_each_set
def test_concurrent_runs_may_bring_weights_of_their_own(
    kernel_set: str, operator: str, library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    force(kernel_set, monkeypatch)
    layer, x = random_convolution(rng, 1, 3)
    weights = [layer.w, -layer.w, np.roll(layer.w, 1, axis=0)]
    expected = [run(replace(layer, operator=operator, w=w).model(), x) for w in weights]
    model = replace(layer, operator=operator).model()
    without_constant(model, "w")
    living = session(model, library)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: living.run(None, {"x": x, "w": weights[i % 3]})[0], range(48)))
    for i, output in enumerate(found):
        np.testing.assert_array_equal(output, expected[i % 3])
