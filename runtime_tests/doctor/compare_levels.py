"""Run a model once with ONNX Runtime's optimizer and once without, and measure how much the results differ.

The optimizer may only change the order in which sums are rounded: a result near a tie becomes the next code. So two
results are taken as equal up to rounding where

    codes, and floats made from codes             differ by one step at most, or as floats do
    floats           differ by 1e-5 of the largest at most, or, in root mean square, by 5 % of the standard deviation
                     (of a tenth of the largest, where that is more)
    other integers   (classes, indices) differ in at most 5 % of the elements
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from qil_deploy.onnx_io import loadable, parse_file, with_outputs
from qil_deploy.runtime_tests.sessions import create_session, session_options

from .inputs import Inputs

TOLERANCE: Final = 0.05
_FLOAT_TOLERANCE: Final = 1e-5  # of the largest number, for sums of floats in another order
_ABSOLUTE_TOLERANCE: Final = 1e-7
_LEAST_SPREAD: Final = 0.1  # of the largest number: a few numbers may all be alike
_STEP_TOLERANCE: Final = 1.001  # steps: they are multiplied in float32
_CODES: Final = frozenset({"uint8", "int8", "uint16", "int16"})
# Types of outputs that NumPy cannot hold.
_NOT_FETCHED: Final = (
    "tensor(bfloat16)", "tensor(float8", "tensor(float4", "tensor(int4", "tensor(uint4", "tensor(int2", "tensor(uint2",
    "seq(", "map(", "optional(", "sparse_tensor(",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TensorDifference:
    """Difference of one tensor between two runs.

    Attributes:
        tensor: its name.
        dtype: NumPy's name of its type.
        elements: how many it has, without the optimizer.
        differing: how many of them differ, including those that are infinite or NaN in only one of the two.
        largest: the largest difference between finite elements.
        rms: root mean square of these differences.
        spread: standard deviation of the finite elements without the optimizer.
        magnitude: the largest of them.
        step: between two codes; 0 if it is not known.
        unlike: how many are finite in only one of the two; all of them if the shapes differ.
    """

    tensor: str
    dtype: str
    elements: int
    differing: int
    largest: float
    rms: float
    spread: float
    magnitude: float
    step: float
    unlike: int

    @property
    def is_single_steps(self) -> bool:
        """Whether codes differ by one step at most."""
        return self.dtype in _CODES and not self.unlike and self.largest <= 1

    @property
    def is_rounding(self) -> bool:
        """Whether the difference is explained by rounding (module docstring)."""
        if self.unlike:
            return False
        if not (self.dtype in _CODES or self.dtype.startswith("float")):
            return self.differing <= TOLERANCE * self.elements
        few = _FLOAT_TOLERANCE * self.magnitude + _ABSOLUTE_TOLERANCE if self.dtype.startswith("float") else 0
        size = max(self.spread, _LEAST_SPREAD * self.magnitude)
        return self.largest <= max(few, _STEP_TOLERANCE * self.step) or self.rms <= TOLERANCE * size


def difference(tensor: str, plain: NDArray[Any], optimized: NDArray[Any], *, step: float = 0) -> TensorDifference:
    """Compare a tensor computed without the optimizer with the same tensor computed with it.

    Args:
        tensor: its name.
        plain: without.
        optimized: with it.
        step: between two codes, for floats made from codes.
    """
    unlike = plain.shape != optimized.shape or plain.dtype != optimized.dtype
    numeric = plain.dtype.kind in "fiub" and not unlike
    first, second = ((array.astype(np.float64).ravel() if numeric else np.zeros(0)) for array in (plain, optimized))
    finite = np.isfinite(first) & np.isfinite(second)
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    differing = plain.size if unlike else np.count_nonzero(~same if numeric else plain != optimized)
    with np.errstate(over="ignore"):
        steps, values = np.abs(first[finite] - second[finite]), first[finite]
        rms, spread = (np.sqrt(np.mean(steps**2)), values.std()) if steps.size else (0, 0)
    return TensorDifference(
        tensor=tensor,
        dtype=str(plain.dtype),
        elements=int(plain.size),
        differing=int(differing),
        largest=_bounded(steps.max(initial=0)),
        rms=_bounded(rms),
        spread=_bounded(spread),
        magnitude=_bounded(np.abs(values).max(initial=0)),
        step=1 if plain.dtype.name in _CODES else step,
        unlike=max(int(plain.size), 1) if unlike else int(np.count_nonzero(~same & ~finite)),
    )


def _bounded(number: float) -> float:
    """Return a number that JSON can represent."""
    return float(min(number, np.finfo(np.float64).max))


def run(session: onnxruntime.InferenceSession, inputs: Inputs) -> dict[str, NDArray[Any]]:
    """Return a session's results for inputs, except those that NumPy cannot represent."""
    names = [tensor.name for tensor in session.get_outputs() if not tensor.type.startswith(_NOT_FETCHED)]
    if not names:
        session.run_with_ort_values(None, {name: _runtime_value(value) for name, value in inputs.items()})
        return {}
    return {name: np.asarray(value) for name, value in zip(names, session.run(names, inputs), strict=True)}


def _runtime_value(value: Any) -> onnxruntime.OrtValue:  # noqa: ANN401 - an array, or what it returns
    return value if isinstance(value, onnxruntime.OrtValue) else onnxruntime.OrtValue.ortvalue_from_numpy(value)


def differences(
    plain: Mapping[str, NDArray[Any]], optimized: Mapping[str, NDArray[Any]], steps: Mapping[str, float]
) -> list[TensorDifference]:
    """Compare all results of both runs; `steps` are the steps of floats dequantized from codes, by name."""
    return [
        difference(name, plain[name], optimized[name], step=steps.get(name, 0)) for name in plain if name in optimized
    ]


def first_difference(path: Path, fused: Path, inputs: Inputs) -> TensorDifference | None:
    """Return the first tensor in execution order whose codes differ, or whose floats differ by more than rounding.

    Tensors are matched by their names, types and shapes; None if none is found.

    Args:
        path: the model.
        fused: as `write_fused` writes it.
        inputs: those with differing results.
    """
    made = _all_tensors(path, path.parent, inputs)
    for name, value in _all_tensors(fused, path.parent, inputs).items():
        plain = made.get(name)
        if plain is None or plain.shape != value.shape or plain.dtype != value.dtype:
            continue
        found = difference(name, plain, value)
        if found.differing and (plain.dtype.name in _CODES or not found.is_rounding):
            return found
    return None


def write_fused(path: Path, fused: Path) -> None:
    """Write a model as the optimizer fuses it, before it moves tensors to other layouts and renames them."""
    options = session_options(level="extended")
    options.optimized_model_filepath = str(fused)
    onnxruntime.InferenceSession(loadable(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)


def _all_tensors(path: Path, folder: Path, inputs: Inputs) -> dict[str, NDArray[Any]]:
    """Run a graph as it is written, and return every tensor of its main graph in the order of execution."""
    message = parse_file(path)
    present = {info.name for info in message.graph.output}
    names = [name for node in message.graph.node for name in node.output if name]
    content = with_outputs(path.read_bytes(), [name for name in dict.fromkeys(names) if name not in present])
    found = run(create_session(path, level="disabled", content=content, folder=folder), inputs)
    return {name: found[name] for name in dict.fromkeys(names) if name in found}
