"""Random inputs for any model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from qil_deploy.errors import ModelFileError

_CODES = {"tensor(uint8)": np.uint8, "tensor(int8)": np.int8}
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
_INDICES = {"tensor(int32)": np.int32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}
_LARGEST_INPUT = 2**31 - 1  # bytes


def random_inputs(
    session: onnxruntime.InferenceSession, *, batch: int, seed: int, path: Path
) -> dict[str, NDArray[Any]]:
    """Draw one value for each input of a session.

    Integers of 8 bits are drawn over their whole range, floats from N(0, 1). Wider integers, which may be indices, and
    booleans are 0 or 1. A free first dimension becomes `batch`.

    Raises:
        ModelFileError: an input's type is none of these, its first dimension is fixed at another
            batch, another dimension is free, or it would be larger than 2 GiB.
    """
    generator = np.random.default_rng(seed)
    inputs: dict[str, NDArray[Any]] = {}
    for tensor in session.get_inputs():
        shape = list(tensor.shape)
        if shape and not isinstance(shape[0], int):
            shape[0] = batch
        if not shape or shape[0] != batch or not all(isinstance(size, int) for size in shape):
            raise ModelFileError(
                f"input {tensor.name!r} of {path} has shape {tensor.shape}; a batch of {batch} needs a first "
                f"dimension that is free or {batch}, and all others fixed."
            )
        if 8 * math.prod(shape) > _LARGEST_INPUT:
            raise ModelFileError(f"input {tensor.name!r} of {path} has shape {shape}: too large; use a smaller batch.")
        drawn = draw(tensor.type, shape, generator)
        if drawn is None:
            raise ModelFileError(
                f"input {tensor.name!r} of {path} is a {tensor.type}; inputs can be drawn for "
                f"{', '.join([*_CODES, *_FLOATS, *_INDICES])}."
            )
        inputs[tensor.name] = drawn
    return inputs


def draw(kind: str, shape: Sequence[int], generator: np.random.Generator) -> NDArray[Any] | None:
    """Draw a tensor of one of ONNX Runtime's types as `random_inputs` does; None if it is of another type."""
    if kind in _CODES:
        limits = np.iinfo(_CODES[kind])
        return generator.integers(limits.min, limits.max, shape, limits.dtype, endpoint=True)
    if kind in _FLOATS:
        return generator.standard_normal(shape, np.float32).astype(_FLOATS[kind])
    if kind in _INDICES:
        return generator.integers(0, 2, shape).astype(_INDICES[kind])
    return None
