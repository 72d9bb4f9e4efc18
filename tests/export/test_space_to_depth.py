"""The rewritten stem: the same codes for every geometry, in both formats and at every level; exceptions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qil_deploy.export.emitter import QIL_DOMAIN, Emitter
from qil_deploy.export.integer_graph import IntegerGraph
from qil_deploy.export.passes.space_to_depth import MIN_RESULTS, SpaceToDepth
from qil_deploy.export.weight_layout import fewest_differences
from qil_deploy.onnx_io.model_file import read_model
from qil_deploy.reference import IntegerReference

from .conftest import EXACT_LEVELS, run_runtime
from .rewriting import lowered, rewritten, stored

Array = NDArray[Any]
OUTPUTS = 6


@dataclass(frozen=True)
class Stem:
    """A convolution of an image."""

    channels: int = 3
    size: tuple[int, int] = (20, 20)
    kernel: tuple[int, int] = (7, 7)
    stride: tuple[int, int] = (2, 2)
    pads: tuple[int, int, int, int] = (3, 3, 3, 3)
    zero_point: int = 114
    dilation: int = 1
    group: int = 1
    input: str = "uint8"

    @property
    def codes(self) -> NDArray[np.int8]:
        shape = (OUTPUTS, self.channels // self.group, *self.kernel)
        codes = np.random.default_rng(0).integers(-63, 63, shape, np.int8, endpoint=True)
        codes[0, :, 0] = 0  # a kernel may begin with zeros of its own
        return codes

    def captured(self) -> ir.Model:
        emitter, codes = Emitter(), self.codes
        dtype = ir.DataType.UINT8 if self.input == "uint8" else ir.DataType.FLOAT
        shape = ir.Shape(["batch", self.channels, *self.size])
        image = ir.Value(name="image", shape=shape, type=ir.TensorType(dtype))
        x = image
        if self.input == "float":
            grid: dict[str, float | int] = {"scale": 0.02, "zero_point": self.zero_point}
            x = emitter.op("Quantize", [image], "quantizer", domain=QIL_DOMAIN, attributes=grid)
        y_scale = 0.02 * 150 * 37 * float(np.sqrt(codes[0].size)) / 60
        attributes = {
            "x_scale": 0.02, "x_zero_point": self.zero_point, "y_scale": y_scale, "y_zero_point": 100, "low": 0,
            "high": 255, "weight_bits": 7, "strides": list(self.stride), "pads": list(self.pads),
            "dilations": [self.dilation] * 2, "group": self.group,
        }  # fmt: skip
        constants: dict[str, Array] = {
            "codes": codes,
            "spread": np.ones(OUTPUTS, np.int8),
            "bias": np.arange(OUTPUTS, dtype=np.int32) * 100,
            "w_scale": np.linspace(0.8, 1.2, OUTPUTS, dtype=np.float32),
        }
        operands = [x, *(emitter.constant(array, f"conv_{name}") for name, array in constants.items())]
        y = emitter.op("Conv", operands, "conv", domain=QIL_DOMAIN, attributes=attributes)
        y.shape, y.type = ir.Shape(["batch", OUTPUTS, None, None]), ir.TensorType(ir.DataType.UINT8)
        return emitter.model([image], [y], {"": 13, QIL_DOMAIN: 1}, ir_version=7)

    def images(self) -> Array:
        rng = np.random.default_rng(1)
        shape = (2, self.channels, *self.size)
        return rng.integers(0, 256, shape, np.uint8) if self.input == "uint8" else rng.normal(0, 1, shape).astype("f4")


def write(model: ir.Model, path: Path, format_: str = "qlinear") -> Path:
    written = stored(lowered(model, format_))
    del written.graph.opset_imports[QIL_DOMAIN]
    ir.save(written, path)
    onnx.checker.check_model(path, full_check=True)
    return path


def check(stem: Stem, folder: Path) -> list[str]:
    """Require unchanged codes and certified weights; return the first operators."""
    images, captured = stem.images(), stem.captured()
    plain = IntegerReference(read_model(write(captured, folder / "plain.onnx"))).run(images)
    model, notes = rewritten(captured, SpaceToDepth(min_results=1))
    for format_, levels in EXACT_LEVELS.items():
        path = write(model, folder / "rewritten.onnx", format_)
        np.testing.assert_array_equal(IntegerReference(read_model(path)).run(images), plain, strict=True)
        for level in levels:
            np.testing.assert_array_equal(run_runtime(onnx.load(path), images, level)["conv"], plain, strict=True)
        (layer,) = IntegerGraph(IntegerReference(read_model(path))).layers
        assert fewest_differences(layer.weights_of(slice(None)), stem.codes.astype(np.int64)) == 0
    assert notes.rewritten in ([], ["conv"])
    assert bool(notes.left_alone) != bool(notes.rewritten)
    return [node.op_type for node in model.graph]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stems")


BLOCKS = ["Reshape", "Transpose", "Reshape", "Transpose", "Reshape", "Transpose"]


@pytest.mark.parametrize(
    ("stem", "operators"),
    [
        (Stem(), BLOCKS),
        (Stem(input="float"), ["Quantize", *BLOCKS]),
        (Stem(size=(21, 20)), ["Pad", *BLOCKS]),
        (Stem(size=(24, 24), kernel=(11, 11), stride=(4, 4), pads=(2, 2, 2, 2)), ["Pad", *BLOCKS]),
        (Stem(kernel=(3, 3), pads=(1, 1, 1, 1)), BLOCKS),
        (Stem(size=(21, 21), kernel=(5, 5), stride=(3, 3), pads=(2, 2, 2, 2)), ["Pad", *BLOCKS]),
        (Stem(kernel=(3, 3), stride=(1, 1), pads=(1, 1, 1, 1)), ["Pad"]),
        (Stem(channels=1, kernel=(3, 3), stride=(1, 1), pads=(0, 0, 0, 0)), ["Pad"]),
        (Stem(channels=2), BLOCKS),
        (Stem(zero_point=0), BLOCKS),
        (Stem(zero_point=255, size=(23, 17)), ["Pad", *BLOCKS]),
    ],
)
def test_blocks_become_channels(stem: Stem, operators: list[str], folder: Path) -> None:
    assert check(stem, folder) == [*operators, "Conv"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"channels": 4}, "its image has more than 3 channels"),
        ({"channels": 6}, "its image has more than 3 channels"),
        ({"stride": (2, 1)}, "it is dilated, in groups, or of two strides"),
        ({"stride": (1, 1)}, "its kernel is larger than 5, and planes of nothing would cost more"),
        ({"dilation": 2}, "it is dilated"),
        ({"group": 3}, "it is dilated, in groups"),
        ({"kernel": (2, 2)}, "or its kernel is no larger than its stride"),
        ({"kernel": (2, 7)}, "or its kernel is no larger than its stride"),
        ({"size": (6, 20)}, "or some windows in the padding alone"),
        (
            {"size": (15, 15), "kernel": (8, 8), "stride": (4, 4), "pads": (0, 0, 0, 0)},
            "its last blocks lie outside of the image",
        ),
    ],
)
def test_what_is_left_alone(change: dict[str, Any], reason: str, folder: Path) -> None:
    stem = replace(Stem(), **change)
    assert check(stem, folder) == ["Conv"]
    (found,) = rewritten(stem.captured(), SpaceToDepth(min_results=1))[1].left_alone
    assert reason in found


def test_small_results_are_left_alone_by_default() -> None:
    for results, count in ((MIN_RESULTS - 1, 0), (MIN_RESULTS, 1)):
        _, notes = rewritten(Stem(size=(2 * results, 2 * results)).captured(), SpaceToDepth())
        assert len(notes.rewritten) == count


sizes = st.integers(9, 24)
kernels = st.integers(2, 8)
pads = st.integers(0, 4)


@given(
    stem=st.integers(1, 5).flatmap(
        lambda stride: st.builds(
            Stem,
            channels=st.integers(1, 3),
            size=st.tuples(sizes, sizes),
            kernel=st.tuples(kernels, kernels),
            stride=st.just((stride, stride)),
            pads=st.tuples(pads, pads, pads, pads),
            zero_point=st.sampled_from((0, 77, 255)),
            input=st.sampled_from(("uint8", "float")),
        )
    )
)
@example(stem=Stem(size=(9, 9), kernel=(8, 8), stride=(5, 5), pads=(4, 0, 0, 4)))
@settings(max_examples=60)
def test_any_geometry_gives_the_same_codes(stem: Stem, folder: Path) -> None:
    check(stem, folder)


def test_a_convolution_of_something_else_than_the_image_is_left_alone() -> None:
    captured = Stem().captured()
    conv = next(iter(captured.graph))
    pool = ir.node("MaxPool", [captured.graph.inputs[0]], {"kernel_shape": [1, 1]}, outputs=[ir.Value(name="pooled")])
    captured.graph.insert_before(conv, pool)
    conv.replace_input_with(0, pool.outputs[0])
    _, notes = rewritten(captured, SpaceToDepth())
    assert (notes.rewritten, notes.left_alone) == ([], {"it reads codes, not the image": ["conv"]})
