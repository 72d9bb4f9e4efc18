"""One input for any model: of every element type, with free dimensions bound to small sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from qil_deploy.runtime_tests.bench.inputs import draw

from .findings import quoted

Range = tuple[float, float]
Inputs = dict[str, Any]  # arrays, and ONNX Runtime's own values of types that NumPy does not have

# Sizes for free dimensions, tried one after the other: images of most networks, then what suits texts and tables.
_SIZES: Final = (32, 224, 8, 2, 1)
_LARGEST: Final = 2**27  # bytes of all inputs
_WIDE_CODES: Final = {
    "tensor(uint16)": np.uint16,
    "tensor(int16)": np.int16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
}
# Stored as integers: their bits, ONNX's number of the element type, and a mask that leaves finite numbers alone.
_BIT_PATTERNS: Final = {
    "tensor(bfloat16)": (16, 16, 0xBFFF),
    "tensor(float8e4m3fn)": (8, 17, 0xBF),
    "tensor(float8e4m3fnuz)": (8, 18, 0x3F),
    "tensor(float8e5m2)": (8, 19, 0xBF),
    "tensor(float8e5m2fnuz)": (8, 20, 0x3F),
}


class UndrawnError(Exception):
    """Reason why no input can be drawn for a model."""


def drawn_inputs(session: onnxruntime.InferenceSession, *, seed: int, ranges: Mapping[str, Range]) -> Iterator[Inputs]:
    """Yield inputs for a session, the likeliest first: the network may not accept some sizes of free dimensions.

    A free first dimension, the batch, is 1. Codes are drawn over their whole range; floats over `ranges`, by the name
    of the input, and from N(0, 1) without one; wider integers, which may be indices, and booleans are 0 or 1.

    Raises:
        UndrawnError: an input is no tensor, or is too large.
    """
    tensors = session.get_inputs()
    free = any(not isinstance(size, int) for tensor in tensors for size in tensor.shape[1:])
    for size in _SIZES if free else _SIZES[:1]:
        generator = np.random.default_rng(seed)
        shapes = {tensor.name: _bound(tensor.shape, size) for tensor in tensors}
        elements = sum(math.prod(shape) for shape in shapes.values())
        if 8 * elements > _LARGEST:
            raise UndrawnError(f"its inputs have {elements:,} elements, more than are drawn for it")
        yield {
            tensor.name: _draw(tensor, shapes[tensor.name], generator, ranges.get(tensor.name)) for tensor in tensors
        }


def describe_inputs(session: onnxruntime.InferenceSession, inputs: Inputs) -> list[str]:
    """Return name, type and shape of each input."""
    described = []
    for tensor in session.get_inputs():
        value = inputs[tensor.name]
        shape = list(value.shape() if isinstance(value, onnxruntime.OrtValue) else value.shape)
        described.append(f"{quoted(tensor.name)} {tensor.type.removeprefix('tensor(').removesuffix(')')} {shape}")
    return described


def _bound(shape: Sequence[int | str | None], size: int) -> list[int]:
    return [
        each if isinstance(each, int) and each >= 0 else (1 if axis == 0 else size) for axis, each in enumerate(shape)
    ]


def _draw(
    tensor: onnxruntime.NodeArg, shape: list[int], generator: np.random.Generator, limits: Range | None
) -> NDArray[Any] | onnxruntime.OrtValue:
    kind = tensor.type
    if limits is not None and kind == "tensor(float)":
        return generator.uniform(*limits, shape).astype(np.float32)
    if kind in _WIDE_CODES:
        return generator.integers(0, 2, shape).astype(_WIDE_CODES[kind])
    if kind in _BIT_PATTERNS:
        bits, number, mask = _BIT_PATTERNS[kind]
        drawn = (generator.integers(0, 2**bits, shape) & mask).astype(f"uint{bits}")
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(drawn, number)
    if kind == "tensor(string)":
        return np.full(shape, "a", object)
    drawn_array = draw(kind, shape, generator)
    if drawn_array is None:
        raise UndrawnError(f"its input {quoted(tensor.name)} is a {kind}, of which none is drawn")
    return drawn_array
