"""One budget for everything that a file makes the reference compute: excess is refused before memory is allocated."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qil_deploy.errors import ConfigError, ModelFileError
from qil_deploy.reference import IntegerReference, kernels, products
from qil_deploy.reference.budget import LIMIT_VARIABLE, Budget, BudgetError, Cost

if TYPE_CHECKING:
    from tests.reference.conftest import Comparison, Graph

Array = NDArray[Any]
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8), np.uint8)
NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def doubled(graph: Graph) -> None:
    name = graph.constant(np.ones((1, 1024), np.int32))
    for _ in range(40):
        name = graph.node("Concat", name, name, axis=0)


def added_to_itself(graph: Graph) -> None:
    """Neither large nor deep, but endless: 2**24 numbers, 2,000 times."""
    name = graph.node("Expand", graph.constant(np.zeros((1, 1), np.int32)), graph.constant(np.array([2**12, 2**12])))
    for _ in range(2000):
        name = graph.node("Add", name, name)


def many(graph: Graph) -> None:
    """A hundred constants of 32 MiB, each well within any limit for one."""
    value, shape = graph.constant(np.zeros((1, 1), np.int8)), graph.constant(np.array([2**12, 2**13]))
    for _ in range(100):
        graph.node("Expand", value, shape)


def expanded(graph: Graph) -> None:
    graph.node("Expand", graph.constant(np.zeros((1, 1), np.int8)), graph.constant(np.array([2**20, 2**20])))


def broadcast(operator: str, dtype: type[np.generic]) -> Callable[[Graph], None]:
    def build(graph: Graph) -> None:
        ones = np.ones((2**15, 1), dtype)
        graph.node(operator, graph.constant(ones), graph.constant(ones.T))

    return build


def widened(graph: Graph) -> None:
    narrow = graph.node("Expand", graph.constant(np.zeros((1, 1), np.int8)), graph.constant(np.array([2**13, 2**14])))
    graph.node("Cast", narrow, to=7)


def sums_of_constants(graph: Graph) -> None:
    codes = graph.node("Expand", graph.constant(np.zeros((1, 1), np.uint8)), graph.constant(np.array([2**13, 2**13])))
    scale, zero = graph.grid(1, 0)
    weights = graph.node("Expand", graph.constant(np.zeros((1, 1), np.int8)), graph.constant(np.array([2**13, 2**13])))
    product = graph.node(
        "QGemm", codes, scale, zero, weights, scale, graph.constant(np.int8(0)), domain="com.microsoft"
    )
    for _ in range(3):
        product = graph.node("QuantizeLinear", product, scale, zero)
        product = graph.node(
            "QGemm", product, scale, zero, weights, scale, graph.constant(np.int8(0)), domain="com.microsoft"
        )


def padded(graph: Graph) -> None:
    graph.node("Pad", "images", graph.constant(np.array([0, 0, 2**14, 2**14] * 2)))


def resized(graph: Graph) -> None:
    graph.node("Resize", "images", "", graph.constant(np.array([1, 1, 2**14, 2**14], np.float32)), **NEAREST)


def expanded_images(graph: Graph) -> None:
    graph.node("Expand", "images", graph.constant(np.array([2**24, 1, 1, 1, 1])))


def joined_images(graph: Graph) -> None:
    name = "images"
    for _ in range(30):
        name = graph.node("Concat", name, name, axis=1)


def convolved(graph: Graph) -> None:
    operands = graph.weights(np.ones((1, 3, 1, 1), np.int8), np.ones(1, np.float32))
    graph.node("QLinearConv", "images", *graph.grid(1, 0), *operands, *graph.grid(1, 0), pads=[2**15] * 4)


def pooled(graph: Graph) -> None:
    graph.node("MaxPool", "images", kernel_shape=[2**12, 2**12], pads=[2**11] * 4)


def added(graph: Graph) -> None:
    zero, shape = graph.constant(np.zeros([1] * 5, np.uint8)), graph.constant(np.array([2**22, 1, 1, 1, 1]))
    column = graph.node("Expand", zero, shape)
    grid = graph.grid(1, 0)
    graph.node("QLinearAdd", "images", *grid, column, *grid, *grid, domain="com.microsoft")


def scaled_along_a_new_axis(graph: Graph) -> None:
    scale = graph.constant(np.ones(2**24, np.float32))
    graph.node("DequantizeLinear", graph.node("Flatten", "images", axis=0), scale, axis=0)


FILES: dict[str, Callable[[Graph], None]] = {
    "doubled": doubled,
    "added to itself": added_to_itself,
    "many": many,
    "expanded": expanded,
    "broadcast by Add": broadcast("Add", np.int32),
    "broadcast by Sub": broadcast("Sub", np.int32),
    "broadcast by Mul": broadcast("Mul", np.int8),
    "broadcast by Clip": broadcast("Clip", np.int8),
    "widened": widened,
    "sums of constants": sums_of_constants,
    "images padded": padded,
    "images resized": resized,
    "images expanded": expanded_images,
    "images joined": joined_images,
    "convolved": convolved,
    "pooled": pooled,
    "added": added,
    "scaled along a new axis": scaled_along_a_new_axis,
}


@pytest.mark.parametrize("name", FILES)
def test_what_takes_more_than_there_is_is_refused(comparison: Comparison, graph: Graph, name: str) -> None:
    FILES[name](graph)
    model = graph.model(IMAGES, output=graph.nodes[-1].output[0])
    assert len(model.SerializeToString()) < 2**20 + 2**18 or "scaled" in name
    with pytest.raises(ModelFileError, match=f"may be.*set {LIMIT_VARIABLE} if the file is right"):
        IntegerReference(comparison.read(model)).run(IMAGES)


@pytest.fixture
def network(graph: Graph) -> Graph:
    """One operator for each kind of kernel, on images of three channels."""
    rng = np.random.default_rng(1)
    operands = graph.weights(rng.integers(-63, 64, (4, 3, 3, 3), np.int8), np.full(4, 0.01, np.float32))
    grids = graph.grid(1, 0), graph.grid(1, 128)
    y = graph.node("QLinearConv", "images", *grids[0], *operands, *grids[1], pads=[1] * 4)
    y = graph.node("MaxPool", y, kernel_shape=[3, 3], pads=[1] * 4)
    pooled = graph.node(
        "QLinearAveragePool", y, *grids[1], *grids[1], kernel_shape=[3, 3], pads=[1] * 4, domain="com.microsoft"
    )
    thirds = graph.grid(1 / 3, 100)
    y = graph.node("QLinearAdd", y, *thirds, pooled, *graph.grid(1, 7), *graph.grid(1, 30), domain="com.microsoft")
    y = graph.node("QuantizeLinear", graph.node("DequantizeLinear", y, *graph.grid(0.5, 3)), *graph.grid(0.3, 9))
    codes = rng.integers(-63, 64, (5, 256), np.int8)
    weights = graph.weights(codes, np.linspace(0.01, 0.02, 5, dtype=np.float32))
    inputs = [graph.node("Flatten", y), *graph.grid(1, 9), *weights]
    graph.node("QGemm", *inputs, graph.constant(np.arange(5, dtype=np.int32)), domain="com.microsoft", transB=1)
    return graph


@pytest.mark.parametrize("elements", [1, 7, 300])
def test_parts_of_any_size_make_the_same_whole(
    comparison: Comparison, network: Graph, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = comparison.read(network.model(IMAGES))
    expected = IntegerReference(model).run_all(IMAGES)
    monkeypatch.setattr(kernels, "_PART_ELEMENTS", elements)
    monkeypatch.setattr(products, "_BLOCK_ELEMENTS", elements)
    monkeypatch.setattr(kernels.parts, "__defaults__", (elements,))
    monkeypatch.setattr(kernels.blocks, "__defaults__", (elements,))
    found = IntegerReference(model).run_all(IMAGES)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, strict=True)


def test_parts_cover_every_element_once() -> None:
    for shape in ((), (0,), (5,), (3, 0, 2), (4, 7, 9), (1, 1, 33), (2, 3, 4, 5)):
        for most in (1, 2, 10, 1000):
            seen = np.zeros(shape, np.int64)
            for part in kernels.parts(shape, most):
                assert seen[part].size <= most
                seen[part] += 1
            assert np.all(seen == 1)


def test_blocks_shrink_until_they_fit(
    comparison: Comparison, network: Graph, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    images = rng.integers(0, 256, (300, 3, 8, 8), np.uint8)
    model = comparison.read(network.model(images))
    expected = IntegerReference(model)
    logits, tensors = expected.run(images), expected.run_all(images)
    monkeypatch.setenv(LIMIT_VARIABLE, "0.00003")  # some 32 kB, and more for the bytes of the file
    few = IntegerReference(model)
    with pytest.raises(BudgetError):
        Budget.of_file(model.bytes).pay(Cost(bytes=sum(tensor.nbytes for tensor in tensors.values())))
    np.testing.assert_array_equal(few.run(images), logits, strict=True)
    for name, tensor in few.run_all(images).items():
        np.testing.assert_array_equal(tensor, tensors[name], strict=True)


def test_a_fixed_batch_that_takes_too_much_is_refused_before_it_is_computed(
    comparison: Comparison, network: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = 2**18
    reference = IntegerReference(comparison.read(network.model(IMAGES, batch=batch)))
    most = 0
    execute = IntegerReference._execute

    def watched(self: IntegerReference, images: Array, **options: Any) -> Any:  # noqa: ANN401 - as it is
        nonlocal most
        most = max(most, len(images))
        return execute(self, images, **options)

    monkeypatch.setattr(IntegerReference, "_execute", watched)
    blank = np.broadcast_to(np.uint8(0), (batch, 3, 8, 8))
    for compute in (reference.run, reference.run_all, reference.shapes):
        with pytest.raises(ModelFileError, match="computes 262,144 images at a time"):
            compute(blank)
    assert most == 1


def test_more_may_be_allowed(comparison: Comparison, graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    graph.node("Resize", "images", "", graph.constant(np.array([1, 1, 64, 64], np.float32)), **NEAREST)
    model = comparison.read(graph.model(IMAGES))
    monkeypatch.setenv(LIMIT_VARIABLE, "0.0001")
    with pytest.raises(ModelFileError, match="may be held at a time"):
        IntegerReference(model).run(IMAGES[:1])
    monkeypatch.setenv(LIMIT_VARIABLE, "1")
    assert IntegerReference(model).run(IMAGES[:1]).shape == (1, 3, 512, 512)
    for wrong in ("x", "0", "-1", "nan", "inf", "1e300"):
        monkeypatch.setenv(LIMIT_VARIABLE, wrong)
        with pytest.raises(ConfigError, match=f"{LIMIT_VARIABLE} is '{wrong}'; it must be a positive number of GiB"):
            IntegerReference(model)


def test_what_nothing_uses_is_looked_at_in_qdq_files_too(comparison: Comparison, graph: Graph) -> None:
    """ONNX Runtime executes it."""
    values = graph.dequantize("images", 1, 0)
    idle = graph.node("Expand", graph.constant(np.zeros((1, 1), np.int8)), graph.constant(np.array([2**20, 2**20])))
    graph.quantize(graph.node("Add", values, values), 1, 0)
    with pytest.raises(ModelFileError, match=rf"{idle}.*may be held at a time"):
        IntegerReference(comparison.read(graph.model(IMAGES)))


@pytest.mark.parametrize("operator", ["QuantizeLinear", "DequantizeLinear", "Conv", "Gemm", "Add", "AveragePool"])
def test_operators_of_a_pattern_without_their_inputs_are_refused(
    comparison: Comparison, graph: Graph, operator: str
) -> None:
    graph.quantize(graph.dequantize("images", 1, 0), 1, 0)
    graph.node(operator)
    with pytest.raises(ModelFileError, match=rf"{operator}_2' \({operator}\) has 0 inputs"):
        IntegerReference(comparison.read(graph.model(IMAGES, output="QuantizeLinear_1")))
