"""ResidualAdd and LowBitRescale give the codes of QLinearAdd and Clip; unsupported inputs are refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto

from .addition_models import Addition, every_pair, random_addition, random_sum
from .kernel_sets import force
from .models import run, session, without_constant

for_each_set = pytest.mark.parametrize("kernel_set", ["scalar", "avx512vbmi", "avx2", "neon"])


def sums(model: ModelProto, x: NDArray[np.uint8], b: NDArray[np.uint8], library: Path | None) -> NDArray[np.uint8]:
    """Return the output of one run of a file with two inputs."""
    output: NDArray[np.uint8] = session(model, library).run(None, {"x": x, "B": b})[0]
    return output


@for_each_set
def test_every_pair_of_codes(kernel_set: str, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    force(kernel_set, monkeypatch)
    a, b = every_pair()

    @settings(max_examples=25, deadline=None)
    @given(st.integers(0, 2**32 - 1))
    def check(seed: int) -> None:
        model = random_addition(np.random.default_rng(seed), clipped=False).model(None)
        np.testing.assert_array_equal(sums(model, a, b, library), sums(model, a, b, None))

    check()


@for_each_set
def test_every_code_rescaled(kernel_set: str, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    force(kernel_set, monkeypatch)
    codes = np.arange(256, dtype=np.uint8)

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.integers(0, 255))
    def check(seed: int, added: int) -> None:
        model = random_addition(np.random.default_rng(seed), clipped=True).model(np.array([added], np.uint8))
        np.testing.assert_array_equal(run(model, codes, library), run(model, codes))

    check()


@pytest.mark.parametrize("kernel_set", ["avx512vbmi", "avx2", "scalar"])
def test_ties_are_rounded_as_by_onnx_runtime_with_avx2(
    kernel_set: str, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No export has them: the order of operations decides there, and kernels use that of ONNX Runtime on x86."""
    force("avx2", monkeypatch)
    force(kernel_set, monkeypatch)
    a, b = every_pair()
    finite = st.floats(2**-6, 3, width=32)
    codes = st.integers(0, 255)

    @settings(max_examples=25, deadline=None)
    @given(finite, st.sampled_from([1 / 4, 1 / 2, 1.5, 0.1, 0.7]), finite, st.tuples(codes, codes, codes), codes)
    def check(scale: float, ratio: float, other: float, zero_points: tuple[int, int, int], added: int) -> None:
        addition = Addition((scale * ratio, scale * other, scale), zero_points)
        model = addition.model(None)
        np.testing.assert_array_equal(sums(model, a, b, library), sums(model, a, b, None))
        model = replace(addition, limits=(0, 255)).model(np.array([added], np.uint8))
        np.testing.assert_array_equal(run(model, a[::256], library), run(model, a[::256]))

    check()


@for_each_set
@pytest.mark.parametrize("clipped", [False, True])
def test_random_shapes(
    kernel_set: str, clipped: bool, library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    force(kernel_set, monkeypatch)
    for case in range(25):
        model, x = random_sum(rng, clipped=clipped)
        found = run(model, x, library, threads=1 + case % 2)
        np.testing.assert_array_equal(found, run(model, x), err_msg=f"case {case}: {x.shape}", strict=True)


@for_each_set
@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (63,), (64,), (65,), (2, 1, 32768), (3, 7, 113, 59), (5, 200_003)])
def test_sizes_around_vectors_and_parts(
    kernel_set: str,
    clipped: bool,
    shape: tuple[int, ...],
    library: Path,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
) -> None:
    force(kernel_set, monkeypatch)
    x = rng.integers(0, 256, shape).astype(np.uint8)
    b = np.array([1], np.uint8) if clipped else rng.integers(0, 256, shape).astype(np.uint8)
    model = random_addition(rng, clipped=clipped).model(b)
    np.testing.assert_array_equal(run(model, x, library, threads=2), run(model, x), strict=True)


@for_each_set
def test_concurrent_runs_are_equal(
    kernel_set: str, library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    force(kernel_set, monkeypatch)
    model = Addition().model(None)
    living = session(model, library, threads=2)
    pairs = [rng.integers(0, 256, (2, 3, 50 + i, 200)).astype(np.uint8) for i in range(6)]
    expected = [sums(model, x, x[:, ::-1].copy(), None) for x in pairs]
    with ThreadPoolExecutor(6) as pool:
        feeds = [{"x": x, "B": x[:, ::-1].copy()} for x in pairs]
        found = list(pool.map(lambda i: living.run(None, feeds[i % 6])[0], range(48)))
    for i, output in enumerate(found):
        np.testing.assert_array_equal(output, expected[i % 6])


@for_each_set
def test_operands_of_other_shapes_are_refused(kernel_set: str, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    force(kernel_set, monkeypatch)
    if kernel_set == "neon":
        pytest.skip("it leaves sums to ONNX Runtime")
    model = Addition().model(None)
    x = np.zeros((2, 3, 4, 4), np.uint8)
    living = session(model, library)
    for other in ((3, 4, 4), (2, 3, 1, 1), (1,), (2, 3, 4, 5), (0, 3, 4, 4)):
        with pytest.raises(Exception, match=r"qil\.deploy: A and B must have the same shape"):
            living.run(None, {"x": x, "B": np.zeros(other, np.uint8)})


def row(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"A_scale": row(0)}, "scales must be positive"),
        ({"B_scale": row(-1)}, "scales must be positive"),
        ({"C_scale": row(0)}, "scales must be positive"),
        ({"C_scale": row(np.nan)}, "scales must be positive"),
        ({"A_scale": row(np.inf)}, r"none above 2\*\*20 times that of the result"),
        ({"C_scale": row(1e-30)}, r"none above 2\*\*20 times that of the result"),
        ({"A_scale": row(1, 2)}, "A_scale must hold one value"),
        ({"C_zero_point": np.zeros(2, np.uint8)}, "C_zero_point must hold one value"),
        ({"A_zero_point": np.int8(0)}, "Type"),
    ],
)
def test_malformed_additions_are_refused(
    clipped: bool,
    changed: dict[str, NDArray[np.generic]],
    sentence: str,
    library: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    force("scalar", monkeypatch)
    addition = Addition(limits=(0, 3) if clipped else None)
    with pytest.raises(Exception, match=sentence):
        session(addition.model(np.zeros(1, np.uint8), **changed), library)


@pytest.mark.parametrize("added", [np.zeros((), np.uint8), np.zeros(2, np.uint8), np.zeros((1, 1), np.uint8)])
def test_a_rescaling_adds_one_code(added: NDArray[np.uint8], library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    force("scalar", monkeypatch)
    with pytest.raises(Exception, match="B must be a row of one code"):
        session(Addition(limits=(0, 3)).model(added), library)


@pytest.mark.parametrize("name", ["B", "A_scale", "C_zero_point", "low"])
def test_what_a_rescaling_is_made_of_is_constant(name: str, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    force("scalar", monkeypatch)
    model = Addition(limits=(0, 3)).model(np.ones(1, np.uint8))
    without_constant(model, name)
    with pytest.raises(Exception, match=f"{name} must be a constant"):
        session(model, library)


@for_each_set
def test_limits_in_the_wrong_order_are_those_of_clip(
    kernel_set: str, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(kernel_set, monkeypatch)
    model = Addition(limits=(9, 3)).model(np.ones(1, np.uint8))
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(run(model, codes, library), run(model, codes))


def test_nodes_say_their_kernels(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import qil_deploy_kernels

    force("scalar", monkeypatch)
    before = qil_deploy_kernels.layers()
    living = [
        session(Addition().model(None), library),
        session(Addition(limits=(0, 3)).model(np.ones(1, np.uint8)), library),
    ]
    lines = qil_deploy_kernels.layers()[len(before) :]
    assert lines == ["ResidualAdd: scalar", "LowBitRescale to 0..3: counted steps"]
    del living
