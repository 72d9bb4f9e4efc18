"""Every kernel of LowBitMatMul agrees with MatMulNBits on integers; inputs that would be rounded are refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from .kernel_sets import force
from .matmul_and_pool_models import PackedProduct, random_product
from .models import session, without_constant

SETS = ["scalar", "avx512vbmi"]
for_each_set = pytest.mark.parametrize("kernel_set", SETS)
Rows = NDArray[np.float32]


def run(product: PackedProduct, a: Rows, library: Path | None = None, threads: int = 1) -> Rows:
    output: Rows = session(product.model(), library, threads).run(None, {"A": a})[0]
    return output


def product_of(codes: int, *, bits: int = 2, outputs: int = 5, blocks: int = 3) -> PackedProduct:
    """Return a product whose weights are stored as bytes of one value."""
    return PackedProduct(np.full((outputs, blocks, 128 * bits // 8), codes, np.uint8), bits)


@for_each_set
@pytest.mark.parametrize("bits", [2, 4])
def test_random_products_are_equal(
    kernel_set: str, bits: int, library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    force(kernel_set, monkeypatch)
    for case in range(40):
        product = random_product(rng, bits)
        a = product.rows(rng, int(rng.choice([1, 1, 2, 3, 4, 5, 9])), int(rng.choice([1, 3, 15, 127])))
        found = run(product, a, library, threads=1 + case % 2)
        np.testing.assert_array_equal(found, run(product, a), err_msg=f"case {case}", strict=True)


@for_each_set
@pytest.mark.parametrize("bits", [2, 4])
def test_products_of_whole_numbers_are_those_of_numpy(
    kernel_set: str, bits: int, library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    force(kernel_set, monkeypatch)
    product = random_product(rng, bits)
    a = rng.integers(-127, 128, (3, product.columns)).astype(np.float32)  # exports have no codes below 0
    a[:, :: product.block] = -127
    shifts = np.arange(0, 8, bits)
    stored = product.packed[..., None] >> shifts & 2**bits - 1
    weights = stored.reshape(len(stored), -1).astype(np.int64) - 2 ** (bits - 1)
    np.testing.assert_array_equal(run(product, a, library), a.astype(np.int64) @ weights.T)


@for_each_set
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("codes", [0, 255])
def test_largest_sums_are_equal(
    kernel_set: str, bits: int, codes: int, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(kernel_set, monkeypatch)
    limit = 2**24 // (2**bits - 1)  # of the sum of a row
    product = product_of(codes, bits=bits, outputs=3, blocks=limit // (127 * 128))
    a = np.full((2, product.columns), 127, np.float32)
    np.testing.assert_array_equal(run(product, a, library), run(product, a))
    more = replace(product, packed=np.repeat(product.packed, 2, axis=1))
    with pytest.raises(Exception, match=r"sums may pass 2\*\*24, and be rounded"):
        run(more, np.tile(a, 2), library)


@for_each_set
@pytest.mark.parametrize("value", [127.5, 128, -128, 0.5, 1e30, -1e30, np.inf, -np.inf, np.nan])
def test_what_would_be_rounded_is_refused(
    kernel_set: str, value: float, library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    force(kernel_set, monkeypatch)
    product = product_of(0x1B)
    living = session(product.model(), library)
    for place in (0, 130, 383):
        a = product.rows(rng, 2, 3)
        a[1, place] = value
        with pytest.raises(Exception, match="A must hold integers that reach 127 in every block, and no more"):
            living.run(None, {"A": a})


@for_each_set
def test_a_block_that_does_not_reach_127_is_refused(
    kernel_set: str, library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    force(kernel_set, monkeypatch)
    product = product_of(0x1B)
    living = session(product.model(), library)
    a = product.rows(rng, 2, 3)
    a[0, 255] = 126
    with pytest.raises(Exception, match="A must hold integers that reach 127 in every block"):
        living.run(None, {"A": a})


@for_each_set
def test_inputs_of_wrong_shape_are_refused(kernel_set: str, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    force(kernel_set, monkeypatch)
    living = session(product_of(0x1B).model(), library)
    with pytest.raises(Exception, match="A must have 384 columns"):
        living.run(None, {"A": np.full((1, 385), 127, np.float32)})
    assert living.run(None, {"A": np.zeros((0, 384), np.float32)})[0].shape == (0, 5)


@pytest.mark.parametrize(
    ("product", "sentence"),
    [
        (replace(product_of(0), level=0), "accuracy_level must be 4, and is 0"),
        (replace(product_of(0), scale=0.5), "scales must be 1 for each output and block"),
        (replace(product_of(0), scale=float("nan")), "scales must be 1 for each output and block"),
        (replace(product_of(0), zero_point=0), r"zero_points must be 2\*\*\(bits - 1\) for each output and block"),
        (replace(product_of(0, bits=4), attributes={"bits": 8}), "bits must be 2 or 4, and is 8"),
        (replace(product_of(0), attributes={"N": 6}), "B must have the shape that N, K, bits and block_size say"),
        (replace(product_of(0), attributes={"K": 512}), "B must have the shape that N, K, bits and block_size say"),
        (replace(product_of(0), attributes={"K": 0}), r"K must lie in 1\.\.2\*\*24, and is 0"),
        (replace(product_of(0), attributes={"N": 2**40}), r"N must lie in 1\.\.2\*\*24, and is 1099511627776"),
        (replace(product_of(0), attributes={"block_size": 100}), "block_size must divide K and be a multiple of 16"),
        (replace(product_of(0), attributes={"block_size": 24}), "block_size must divide K and be a multiple of 16"),
    ],
)
def test_malformed_nodes_are_refused(
    product: PackedProduct, sentence: str, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force("scalar", monkeypatch)
    with pytest.raises(Exception, match=sentence):
        session(product.model(), library)


@for_each_set
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("B", "B must have the shape that N, K, bits and block_size say"),
        ("scales", "scales must be 1 for each output and block"),
        ("zero_points", r"zero_points must be 2\*\*\(bits - 1\) for each output and block"),
    ],
)
def test_what_is_no_constant_is_checked_in_each_run(
    kernel_set: str, name: str, sentence: str, library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    force(kernel_set, monkeypatch)
    product = random_product(rng, 2)
    model = product.model()
    (good,) = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == name]
    without_constant(model, name)
    living, a = session(model, library), product.rows(rng, 2, 3)
    bad = good[:, :-1] if name == "B" else good + good.dtype.type(1)
    for _ in range(2):
        np.testing.assert_array_equal(living.run(None, {"A": a, name: good})[0], run(product, a))
        with pytest.raises(Exception, match=sentence):
            living.run(None, {"A": a, name: bad})


@for_each_set
def test_the_node_says_its_kernel(kernel_set: str, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import qil_deploy_kernels

    force(kernel_set, monkeypatch)
    before = qil_deploy_kernels.layers()
    living = session(product_of(0, bits=4).model(), library)
    assert living is not None
    (line,) = qil_deploy_kernels.layers()[len(before) :]
    assert line.startswith("LowBitMatMul 384->5, weights of 4 bits: ")
    assert line.endswith(", 0 bytes of weights beside those of the file")


@for_each_set
def test_concurrent_runs_are_equal(
    kernel_set: str, library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    force(kernel_set, monkeypatch)
    product = random_product(rng, 2)
    living = session(product.model(), library, threads=2)
    rows = [product.rows(rng, 1 + i % 3, 3) for i in range(8)]
    expected = [run(product, a) for a in rows]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: living.run(None, {"A": rows[i % 8]})[0], range(96)))
    for i, output in enumerate(found):
        np.testing.assert_array_equal(output, expected[i % 8])
