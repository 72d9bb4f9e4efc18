"""The first node that differs: planted faults are found, whatever follows them, and only a few images are rerun."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from qil_deploy.datasets import ImageBatches, ImageSet
from qil_deploy.errors import ConfigError, DataError, ModelFileError
from qil_deploy.onnx_io.model_file import read_model
from qil_deploy.reference import IntegerReference
from qil_deploy.runtime_tests import Comparison, Difference, verify
from qil_deploy.runtime_tests.backends import FROZEN, REFERENCE, UNFROZEN, onnx_backend_name
from qil_deploy.runtime_tests.differences import describe_difference

WriteModel = Callable[..., Path]
Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
NAMES = ("cat", "dog", "fox", "hen", "owl")


def batches(images: Images, labels: Labels, batch_size: int = 16) -> ImageBatches:
    return ImageSet(images=images, labels=labels, class_names=NAMES).batches(batch_size)


def change_constant(model: onnx.ModelProto, name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    (stored,) = [constant for constant in model.graph.initializer if constant.name == name]
    stored.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(stored)), name))


def more_bias(bias: NDArray[Any]) -> NDArray[Any]:
    bias = bias.copy()
    bias[1] += 600
    return bias


def plant(path: Path, fault: str, layer: int) -> tuple[Path, str]:
    """Write a copy of a model with a fault in one of its convolutions; return it and the convolution's name."""
    model = onnx.load(path)
    node = [node for node in model.graph.node if node.op_type in ("Conv", "QLinearConv")][layer]
    made = {output: other for other in model.graph.node for output in other.output}
    if node.op_type == "Conv":
        data, weights, bias = (list(made[name].input) for name in node.input)
        x_zero_point, codes, scales = data[2], weights[0], [weights[1], bias[1]]
        biases = bias[0]
    else:
        x_zero_point, codes, scales, biases = node.input[2], node.input[3], [node.input[4]], node.input[8]
    if fault == "bias":
        change_constant(model, biases, more_bias)
    elif fault == "scale":
        for scale in scales:
            change_constant(model, scale, lambda value: value * np.float32(2))  # exact: a QDQ bias keeps the product
    elif fault == "swapped channels":
        change_constant(model, codes, lambda value: value[[1, 0, *range(2, len(value))]])
    else:
        change_constant(model, x_zero_point, lambda value: np.asarray(value + np.uint8(2), np.uint8))
    planted = path.with_name("planted.onnx")
    onnx.save(model, planted)
    return planted, node.name


def compare_with(
    original: Path,
    planted: Path,
    images: Images,
    labels: Labels,
    **options: Any,  # noqa: ANN401 - those of verify
) -> tuple[Comparison, ...]:
    """Compare a file with the results of the file that it was made from, in place of PyTorch's."""
    trained = IntegerReference(read_model(original))
    others, codes = {FROZEN: trained.run}, {FROZEN: trained.run_all}
    return verify(planted, batches(images, labels), others=others, codes=codes, **options).comparisons


def found(comparisons: tuple[Comparison, ...]) -> Difference:
    (comparison,) = comparisons
    assert comparison.difference is not None
    return comparison.difference


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("fault", ["bias", "scale", "swapped channels", "zero point"])
@pytest.mark.parametrize("format_", ["qlinear", "qdq"])
def test_a_planted_fault_is_named(
    write_model: WriteModel, images: Images, labels: Labels, format_: str, fault: str, layer: int
) -> None:
    path = write_model(format=format_)
    planted, name = plant(path, fault, layer)
    comparisons = compare_with(path, planted, images, labels)
    difference = found(comparisons)
    assert (difference.node, difference.operator) == (name, "QLinearConv")
    assert comparisons[0].between == (REFERENCE, FROZEN)
    assert len(comparisons[0].images) == 4
    before, after = (
        IntegerReference(read_model(file)).run_all(images[list(comparisons[0].images)])[difference.tensor]
        for file in (path, planted)
    )
    assert difference.differing == (before != after).sum()
    assert difference.elements == before.size
    assert difference.largest_step == np.abs(before.astype(int) - after).max()
    assert len(difference.indices) == 5
    first = np.argwhere(before != after)[0].tolist()
    assert difference.indices[0] == (comparisons[0].images[first[0]], *first[1:])
    if fault == "bias":
        assert {index[1] for index in difference.indices} == {1}


def test_any_two_backends_are_compared_onnx_runtime_too(
    write_model: WriteModel, images: Images, labels: Labels
) -> None:
    path = write_model()
    planted, name = plant(path, "bias", 1)
    for level in ("disabled", "basic", "extended", "all"):
        comparisons = compare_with(path, planted, images, labels, between=(onnx_backend_name(level), FROZEN))
        assert found(comparisons).node == name
    exact = compare_with(path, planted, images, labels, between=(REFERENCE, onnx_backend_name("all")))
    assert exact[0].difference is None
    assert exact[0].images == (0, 1, 2, 3)


def test_a_layer_is_named_where_the_metadata_list_it_and_clipped_codes_alone_are_known(
    write_model: WriteModel, images: Images, labels: Labels
) -> None:
    path = write_model(metadata={"layers": [{"name": "QLinearConv_2"}]})
    planted, name = plant(path, "scale", 1)
    assert name == "QLinearConv_2"
    trained = IntegerReference(read_model(path))
    clipped = [node.outputs[0] for node in trained.nodes if node.op_type == "Clip"]

    def some_codes(batch: Images) -> dict[str, NDArray[Any]]:
        codes = trained.run_all(batch)
        return {key: codes[key] for key in (*clipped, "logits")}

    report = verify(planted, batches(images, labels), others={FROZEN: trained.run}, codes={FROZEN: some_codes})
    difference = found(report.comparisons)
    assert (difference.node, difference.layer, difference.tensor) == (name, name, clipped[1])
    assert report.comparisons[0].tensors == 3


def test_onnx_runtime_that_rounds_otherwise_is_found_at_the_sum(
    write_model: WriteModel, images: Images, labels: Labels
) -> None:
    comparisons = verify(write_model(ties=True), batches(images, labels)).comparisons
    assert len(comparisons) == 4
    for comparison in comparisons:
        assert comparison.difference is not None
        assert comparison.difference.operator == "QLinearAdd"
        assert comparison.difference.largest_step == 1


def test_only_images_that_differ_are_run_again(write_model: WriteModel, images: Images, labels: Labels) -> None:
    path = write_model()
    trained = IntegerReference(read_model(path))
    asked: list[Images] = []

    def logits(batch: Images) -> NDArray[np.float32]:
        wrong = np.isin(batch.reshape(len(batch), -1)[:, 0], images[[20, 41], 0, 0, 0]).astype(np.float32)
        return np.asarray(trained.run(batch) + wrong[:, None], np.float32)

    def codes(batch: Images) -> dict[str, NDArray[Any]]:
        asked.append(batch)
        return trained.run_all(batch)

    report = verify(path, batches(images, labels, 7), others={FROZEN: logits}, codes={FROZEN: codes})
    (comparison,) = report.comparisons
    assert {20, 41} & set(comparison.images)
    np.testing.assert_array_equal(asked[0], images[list(comparison.images)])
    assert len(asked) == 1
    assert comparison.difference is not None
    assert comparison.difference.tensor == "logits"
    assert comparison.difference.largest_step == pytest.approx(1)


def test_equal_backends_are_compared_only_if_asked(write_model: WriteModel, images: Images, labels: Labels) -> None:
    path = write_model()
    assert verify(path, batches(images, labels)).comparisons == ()
    comparisons = verify(path, batches(images, labels), first_difference=True).comparisons
    assert len(comparisons) == 4
    assert all(comparison.difference is None and comparison.tensors > 5 for comparison in comparisons)
    assert describe_difference(comparisons[0]).startswith("No difference between integer reference and ONNX Runtime")


def test_where_there_are_no_codes_logits_alone_are_compared_and_it_says_so(
    write_model: WriteModel, images: Images, labels: Labels
) -> None:
    path = write_model()
    trained = IntegerReference(read_model(path))
    others = {UNFROZEN: lambda batch: trained.run(batch) + np.float32(1)}
    report = verify(path, batches(images, labels), others=others, between=(REFERENCE, UNFROZEN))
    assert report.exact
    (comparison,) = report.comparisons
    assert comparison.tensors == 1
    assert comparison.difference is not None
    assert comparison.difference.tensor == "logits"
    assert "Only logits could be compared" in describe_difference(comparison)


def test_nan_is_a_difference_without_a_step_and_a_damaged_scale_is_refused(
    write_model: WriteModel, images: Images, labels: Labels
) -> None:
    path = write_model()
    others = {FROZEN: lambda batch: np.full((len(batch), 5), np.nan, np.float32)}
    difference = found(verify(path, batches(images, labels), others=others).comparisons)
    assert (difference.tensor, difference.differing, difference.largest_step) == ("logits", 20, None)
    model = onnx.load(path)
    (classifier,) = [node for node in model.graph.node if node.op_type == "QGemm"]
    change_constant(model, classifier.input[4], lambda value: np.full_like(value, np.nan))
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match="holds the scale nan; scales must be positive and finite"):
        verify(path, batches(images, labels))


def test_pairs_that_cannot_be_compared_are_refused(write_model: WriteModel, images: Images, labels: Labels) -> None:
    path = write_model()
    with pytest.raises(
        ConfigError, match="there is no backend 'frozen PyTorch' to compare node by node; there are int"
    ):
        verify(path, batches(images, labels), between=(REFERENCE, FROZEN))
    with pytest.raises(ConfigError, match="is to be compared with itself; name two backends"):
        verify(path, batches(images, labels), between=(REFERENCE, REFERENCE))


def test_batches_are_read_one_at_a_time(write_model: WriteModel, images: Images, labels: Labels) -> None:
    asked: list[tuple[int, int]] = []

    def read(start: int, stop: int) -> ImageSet:
        asked.append((start, stop))
        chosen = np.arange(start, stop) % len(images)
        return ImageSet(images=images[chosen], labels=labels[chosen], class_names=NAMES)

    many = np.resize(labels, 150)
    data = ImageBatches(count=150, shape=(3, 8, 8), labels=many, class_names=NAMES, batch_size=64, read=read)
    report = verify(write_model(), data)
    assert asked == [(0, 64), (64, 128), (128, 150)]
    assert (report.exact, report.images, report.batch_size) == (True, 150, 64)


def test_a_batch_of_another_shape_is_refused(write_model: WriteModel, images: Images, labels: Labels) -> None:
    with pytest.raises(DataError, match=r"images are uint8 of shape \[16, 3, 8, 4\]"):
        verify(write_model(), batches(images[..., :4], labels))
