"""Run a model once with ONNX Runtime's optimizer and once without, and say how much the results differ.

What the optimizer may change is the order in which sums are rounded: a result near a tie becomes the next code. So two
results are taken as equal up to rounding where

    codes            differ by one step at most, or as floats do
    floats           differ, in root mean square, by at most 5 % of the standard deviation of the unoptimized result
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

from qil_deploy.onnx_file import parse_file
from qil_deploy.onnx_schema import with_outputs
from qil_deploy.runtime_tests.sessions import create_session

from .inputs import Inputs

TOLERANCE: Final = 0.05
_CODES: Final = frozenset({"uint8", "int8", "uint16", "int16"})
_NOT_FETCHED: Final = ("tensor(bfloat16)", "seq(", "map(", "optional(", "sparse_tensor(")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much one tensor differs between two runs.

    Attributes:
        tensor: its name.
        dtype: NumPy's name of its type.
        elements: how many it has, without the optimizer.
        differing: how many of them differ, those included that are infinite or no number in one of the two alone.
        largest: the largest difference between finite elements.
        rms: root mean square of these differences.
        spread: standard deviation of the finite elements without the optimizer.
        unlike: how many are finite in one of the two alone; all of them where the shapes differ.
    """

    tensor: str
    dtype: str
    elements: int
    differing: int
    largest: float
    rms: float
    spread: float
    unlike: int

    @property
    def is_rounding(self) -> bool:
        """Whether rounding explains it (module docstring)."""
        if self.unlike:
            return False
        if self.dtype in _CODES:
            return self.largest <= 1 or self.rms <= TOLERANCE * self.spread
        if self.dtype.startswith("float"):
            return self.rms <= TOLERANCE * self.spread
        return self.differing <= TOLERANCE * self.elements


def difference(tensor: str, plain: NDArray[Any], optimized: NDArray[Any]) -> Difference:
    """Compare a tensor that was computed without the optimizer with the same computed with it."""
    kind, count = str(plain.dtype), int(plain.size)
    if plain.shape != optimized.shape or plain.dtype != optimized.dtype:
        return _unlike(tensor, kind, count)
    if plain.dtype.kind not in "fiub":
        differing = int(np.count_nonzero(plain != optimized))
        return Difference(
            tensor=tensor, dtype=kind, elements=count, differing=differing, largest=0, rms=0, spread=0, unlike=0
        )
    first, second = (array.astype(np.float64).ravel() for array in (plain, optimized))
    finite = np.isfinite(first) & np.isfinite(second)
    same = (first == second) | (np.isnan(first) & np.isnan(second))
    steps = np.abs(first[finite] - second[finite])
    with np.errstate(over="ignore"):
        rms, spread = (float(np.sqrt(np.mean(steps**2))), float(first[finite].std())) if steps.size else (0.0, 0.0)
    return Difference(
        tensor=tensor,
        dtype=kind,
        elements=count,
        differing=int(np.count_nonzero(~same)),
        largest=float(steps.max(initial=0)),
        rms=min(rms, np.finfo(np.float64).max),
        spread=min(spread, np.finfo(np.float64).max),
        unlike=int(np.count_nonzero(~same & ~finite)),
    )


def _unlike(tensor: str, kind: str, count: int) -> Difference:
    return Difference(
        tensor=tensor, dtype=kind, elements=count, differing=count, largest=0, rms=0, spread=0, unlike=max(count, 1)
    )


def run(session: onnxruntime.InferenceSession, inputs: Inputs) -> dict[str, NDArray[Any]]:
    """Return what a session makes of inputs, without what NumPy cannot hold."""
    names = [tensor.name for tensor in session.get_outputs() if not tensor.type.startswith(_NOT_FETCHED)]
    found = session.run(names or None, inputs)
    return {name: np.asarray(value) for name, value in zip(names, found, strict=False)}


def differences(plain: Mapping[str, NDArray[Any]], optimized: Mapping[str, NDArray[Any]]) -> list[Difference]:
    """Compare all results that both runs have."""
    return [difference(name, plain[name], optimized[name]) for name in plain if name in optimized]


def first_difference(path: Path, optimized: Path, inputs: Inputs) -> Difference | None:
    """Return the first tensor, in the order of execution, that differs by more than rounding; None if none is found.

    Tensors are matched by their names, types and shapes: what the optimizer moves to another layout has other names.

    Args:
        path: the model.
        optimized: the graph that ONNX Runtime executes for it.
        inputs: that the results differ for.
    """
    made = _all_tensors(path, path.parent, inputs)
    for name, value in _all_tensors(optimized, path.parent, inputs).items():
        plain = made.get(name)
        if plain is None or plain.shape != value.shape or plain.dtype != value.dtype:
            continue
        found = difference(name, plain, value)
        if not found.is_rounding:
            return found
    return None


def _all_tensors(path: Path, folder: Path, inputs: Inputs) -> dict[str, NDArray[Any]]:
    """Run a graph as it is written, and return every tensor of its main graph in the order of execution."""
    message = parse_file(path)
    present = {info.name for info in message.graph.output}
    names = [name for node in message.graph.node for name in node.output if name]
    content = with_outputs(path.read_bytes(), [name for name in dict.fromkeys(names) if name not in present])
    found = run(create_session(path, level="disabled", content=content, folder=folder), inputs)
    return {name: found[name] for name in dict.fromkeys(names) if name in found}
