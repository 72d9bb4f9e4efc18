"""LowBitMaxPool chooses the same codes as MaxPool; windows that MaxPool does not take are refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from .kernel_sets import force
from .matmul_and_pool_models import pool_model, random_pool
from .models import run, session


def test_random_pools_are_equal(library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    force("scalar", monkeypatch)
    for case in range(150):
        model, x = random_pool(rng)
        found = run(model, x, library, threads=1 + case % 2)
        np.testing.assert_array_equal(found, run(model, x), err_msg=f"case {case}: {model.graph.node[0]} {x.shape}")


@pytest.mark.parametrize(
    ("kernel", "strides", "pads", "sentence"),
    [
        ((3, 3), (1, 1), (3, 0, 0, 0), "pads must be smaller than the kernel"),
        ((3, 2), (1, 1), (0, 0, 0, 2), "pads must be smaller than the kernel"),
        ((3, 3), (0, 1), (0, 0, 0, 0), r"strides must lie in 1\.\.65535, and one is 0"),
        ((3, 3, 3), (1, 1), (0, 0, 0, 0), "kernel_shape must have 2 values"),
        ((3, 3), (1, 1), (0, 0), "pads must have 4 values"),
        ((3, 3), (1, 1), (0, 0, 0, -1), r"pads must lie in 0\.\.65535"),
        ((0, 3), (1, 1), (0, 0, 0, 0), r"kernel_shape must lie in 1\.\.65535"),
    ],
)
def test_malformed_pools_are_refused(
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    pads: tuple[int, ...],
    sentence: str,
    library: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    force("scalar", monkeypatch)
    with pytest.raises(Exception, match=sentence):
        session(pool_model(kernel, strides, pads), library)


def test_inputs_of_wrong_shape_are_refused(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    force("scalar", monkeypatch)
    living = session(pool_model([3, 3], [2, 2], [0, 0, 0, 0]), library)
    for shape, sentence in (
        ((1, 4, 2, 9), "the window does not fit into x"),
        ((1, 4, 9, 2), "the window does not fit into x"),
        ((1, 4, 0, 9), "x has no pixels"),
    ):
        with pytest.raises(Exception, match=sentence):
            living.run(None, {"x": np.zeros(shape, np.uint8)})
    assert living.run(None, {"x": np.zeros((0, 4, 9, 9), np.uint8)})[0].shape == (0, 4, 4, 4)


def test_concurrent_runs_are_equal(library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    force("scalar", monkeypatch)
    model = pool_model([3, 3], [2, 2], [1, 1, 1, 1])
    living = session(model, library, threads=2)
    images = [rng.integers(0, 4, (1, 37, 9 + i, 13)).astype(np.uint8) for i in range(8)]
    expected = [run(model, x) for x in images]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: living.run(None, {"x": images[i % 8]})[0], range(96)))
    for i, output in enumerate(found):
        np.testing.assert_array_equal(output, expected[i % 8])


def test_the_node_says_its_kernel(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import qil_deploy_kernels

    force("scalar", monkeypatch)
    before = qil_deploy_kernels.layers()
    living = session(pool_model([3, 2], [2, 2], [0, 0, 0, 0]), library)
    assert living is not None
    assert qil_deploy_kernels.layers()[len(before) :] == ["LowBitMaxPool 3x2: rows, then columns"]
