"""Files that no exporter writes are refused with a sentence, or computed as their function defines; nothing crashes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from .kernel_sets import for_each_set, force
from .models import Convolution, random_convolution, run, session, without_constant


def convolution(**changes: object) -> Convolution:
    """Return a small ternary convolution with pads, in the exporter's form except for the changes."""
    rng = np.random.default_rng(1)
    w = rng.integers(-1, 2, (20, 9, 3, 3)).astype(np.int8) * np.int8(127)
    values: dict[str, object] = {
        "w": w,
        "bias": rng.integers(-900, 900, 20).astype(np.int32),
        "w_scale": np.full(20, 0.01, np.float32),
        "pads": [1, 1, 1, 1],
        "y_scale": 3.0,
        "high": 3,
    }
    return Convolution(**(values | changes))  # type: ignore[arg-type]  # the tests name fields


def image(
    rng: np.random.Generator, high: int = 3, channels: int = 9
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return rng.integers(0, high + 1, (2, channels, 11, 13)).astype(np.uint8)


@for_each_set
@pytest.mark.parametrize("high", [4, 7, 16, 255])
def test_input_codes_above_what_was_proven(
    kernel_set: str, operator: str, high: int, library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    force(kernel_set, monkeypatch)
    model = convolution(operator=operator).model()
    x = image(rng, high)
    np.testing.assert_array_equal(run(model, x, library, threads=2), run(model, x))
    x = image(rng)
    x[1, 8, 10, 12] = high  # a single one, in the last pixel
    np.testing.assert_array_equal(run(model, x, library), run(model, x))


@for_each_set
@pytest.mark.parametrize(
    "changes",
    [
        {"w": np.full((20, 9, 3, 3), -128, np.int8), "x_high": 255},
        {"w": np.random.default_rng(2).integers(-128, 128, (20, 9, 3, 3)).astype(np.int8), "x_high": 15},
        {"w": np.zeros((20, 9, 3, 3), np.int8)},
        {"low": 9, "high": 3},
        {"bias": np.full(20, 2**31 - 1, np.int32)},
        {"bias": np.full(20, -(2**31), np.int32), "x_high": 0},
        {"y_scale": 1e-30},
        {"y_scale": 1e30},
        {"w_scale": np.full(20, -0.01, np.float32)},
        {"pads": [9, 0, 5, 17]},
        {"pads": [0, 7, 0, 0], "strides": [3, 5]},
        {"dilations": [5, 6]},
        {"x_high": 0},
        {"x_high": 200},
    ],
    ids="-".join,
)
def test_unusual_layers_are_computed(
    kernel_set: str,
    operator: str,
    changes: dict[str, object],
    library: Path,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
) -> None:
    force(kernel_set, monkeypatch)
    layer = convolution(operator=operator, **changes)
    # ONNX Runtime itself may saturate sums of pairs where 8-bit codes meet 8-bit weights, so those inputs stay small.
    x = image(rng, min(layer.x_high, 3))
    np.testing.assert_array_equal(run(layer.model(), x, library), run(layer.model(), x))


def with_constant(name: str, value: object) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        (constant,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
        constant.CopyFrom(numpy_helper.from_array(np.asarray(value), name))

    return change


def with_attribute(name: str, values: list[int]) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        (attribute,) = [entry for entry in model.graph.node[0].attribute if entry.name == name]
        attribute.ints[:] = values

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda model: without_constant(model, "x_high"), "x_high must be a constant"),
        (with_constant("x_zero_point", np.uint8(3)), "x_zero_point must be 0"),
        (with_constant("w_zero_point", np.full(20, 1, np.int8)), "w_zero_point must be 0"),
        (with_constant("w", np.ones((20, 9, 3), np.int8)), "w must have four dimensions, and has 3"),
        (with_constant("w", np.ones((20, 0, 3, 3), np.int8)), "w has a dimension of 0"),
        (with_constant("w", np.ones((20, 9, 5, 3), np.int8)), "kernel_shape is not that of w"),
        (with_constant("bias", np.ones(7, np.int32)), "bias must hold one value for each output channel"),
        (
            with_constant("w_scale", np.ones(7, np.float32)),
            "w_scale must hold one value or one for each output channel",
        ),
        (with_constant("low", np.zeros(2, np.uint8)), "low must hold one value"),
        (with_constant("y_scale", np.float32(0)), "output channel 0 is not a finite number"),
        (with_constant("y_scale", np.float32("nan")), "output channel 0 is not a finite number"),
        (with_attribute("strides", [0, 1]), r"strides must lie in 1\.\.65535, and one is 0"),
        (with_attribute("strides", [1, 1, 1]), "strides must have 2 values"),
        (with_attribute("pads", [0, 0, 0, -1]), r"pads must lie in 0\.\.65535, and one is -1"),
        (with_attribute("dilations", [1, 2**40]), r"dilations must lie in 1\.\.65535"),
    ],
)
def test_malformed_nodes_are_refused(
    change: Callable[[ModelProto], None], sentence: str, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force("scalar", monkeypatch)
    model = convolution().model()
    change(model)
    with pytest.raises(Exception, match=sentence):
        session(model, library)


def test_a_group_that_divides_nothing_is_refused(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    force("scalar", monkeypatch)
    with pytest.raises(Exception, match="group must divide the 20 output channels, and is 3"):
        session(convolution(group=3).model(), library)


@for_each_set
def test_weights_may_change_from_run_to_run(
    kernel_set: str, operator: str, library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    force(kernel_set, monkeypatch)
    layer = convolution(operator=operator)
    model = layer.model()
    without_constant(model, "w")
    living, plain, x = session(model, library), session(model, None), image(rng)
    for w in (layer.w, -layer.w, -layer.w, layer.w[:, ::-1], layer.w[:, :, ::-1]):
        inputs = {"x": x, "w": np.ascontiguousarray(w)}
        np.testing.assert_array_equal(living.run(None, inputs)[0], plain.run(None, inputs)[0])


def test_weights_that_no_kernel_takes_are_refused_in_the_run_that_brings_them(
    library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    force("scalar", monkeypatch)
    layer = convolution()
    model = layer.model()
    without_constant(model, "w")
    living, x = session(model, library), image(rng)
    expected = living.run(None, {"x": x, "w": layer.w})[0]
    for w, sentence in (
        (layer.w[:, :, 0], "w must have four dimensions, and has 3"),
        (layer.w[:7], "w_scale must hold one value or one for each output channel"),
        (layer.w[:, :, :2], "kernel_shape is not that of w"),
        (layer.w[:, :8], "x must have 8 channels, and has 9"),
    ):
        with pytest.raises(Exception, match=sentence):
            living.run(None, {"x": x, "w": np.ascontiguousarray(w)})
    np.testing.assert_array_equal(living.run(None, {"x": x, "w": layer.w})[0], expected)


@for_each_set
def test_inputs_of_wrong_shape_are_refused(
    kernel_set: str, operator: str, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force(kernel_set, monkeypatch)
    living = session(convolution(operator=operator, pads=[0, 0, 0, 0]).model(), library)
    for shape, sentence in (
        ((1, 8, 5, 5), "x must have 9 channels, and has 8"),
        ((1, 9, 2, 5), "the kernel does not fit into x of 2x5"),
        ((1, 9, 0, 5), "x has no pixels"),
    ):
        with pytest.raises(Exception, match=sentence):
            living.run(None, {"x": np.zeros(shape, np.uint8)})
    assert living.run(None, {"x": np.zeros((0, 9, 5, 5), np.uint8)})[0].shape == (0, 20, 3, 3)


@for_each_set
def test_sizes_may_change_from_run_to_run(
    kernel_set: str, operator: str, library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    force(kernel_set, monkeypatch)
    layer, x = random_convolution(rng, 1, 3)
    model = replace(layer, operator=operator).model()
    living, plain = session(model, library), session(model, None)
    for grown in (0, 3, 9, 1, 0, 20, 7, 3):
        larger = np.pad(x, ((0, 0), (0, 0), (0, grown), (0, 2 * grown)), mode="wrap")
        np.testing.assert_array_equal(living.run(None, {"x": larger})[0], plain.run(None, {"x": larger})[0])
