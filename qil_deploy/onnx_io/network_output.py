"""Outputs of an exported file: name, shape and kind of each, from its metadata.

    logits          float32 [N, classes], one row for each image
    dense logits    float32 [N, C, H, W] or of any other shape: exact sums of integers, times one scale per channel
    codes           uint8 of any shape: (code - zero_point) * scale

Files that return one row of logits say nothing of it: `class_names` tell how many there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .names import OUTPUT_NAME

OutputKind = Literal["logits", "dense logits", "codes"]
OUTPUT_KINDS: tuple[OutputKind, ...] = ("logits", "dense logits", "codes")


@dataclass(frozen=True, kw_only=True)
class NetworkOutput:
    """One output.

    Attributes:
        name: in the graph.
        shape: for one image, without the batch.
        kind: what its numbers are (module docstring).
        scale, zero_point: of codes; None for floats.
    """

    name: str
    shape: tuple[int, ...]
    kind: OutputKind
    scale: float | None = None
    zero_point: int | None = None

    @property
    def dtype(self) -> str:
        """The type of its elements."""
        return "uint8" if self.kind == "codes" else "float32"

    def values(self, found: NDArray[Any]) -> NDArray[np.float32]:
        """Return the float32 values of an output: of codes, `(code - zero_point) * scale`; floats are unchanged."""
        if self.scale is None or self.zero_point is None or found.dtype != np.uint8:
            return found.astype(np.float32, copy=False)
        return (found.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)

    def as_returned(self, values: NDArray[Any]) -> NDArray[Any]:
        """Convert float values to the form that the file returns: codes, if it returns codes."""
        if self.scale is None or self.zero_point is None or values.dtype == np.uint8:
            return values
        codes = np.rint(values / np.float32(self.scale)) + self.zero_point
        clipped: NDArray[np.uint8] = np.clip(codes, 0, 255).astype(np.uint8)
        return clipped


def outputs_in_metadata(outputs: Sequence[NetworkOutput]) -> dict[str, Any]:
    """Return the entry of the metadata; none for a single row of logits."""
    if [output.kind for output in outputs] == ["logits"] and outputs[0].name == OUTPUT_NAME:
        return {}
    return {"outputs": [{k: v for k, v in asdict(output).items() if v is not None} for output in outputs]}


def outputs_of_metadata(metadata: Mapping[str, Any]) -> tuple[NetworkOutput, ...]:
    """Return the outputs described by metadata that `read_metadata` has checked.

    Raises:
        KeyError: an entry is missing.
        ValueError: they describe an impossible output.
    """
    if "outputs" not in metadata:
        return (NetworkOutput(name=OUTPUT_NAME, shape=(len(metadata["class_names"]),), kind="logits"),)
    outputs = tuple(
        NetworkOutput(
            name=entry["name"],
            shape=tuple(entry["shape"]),
            kind=entry["kind"],
            scale=entry.get("scale"),
            zero_point=entry.get("zero_point"),
        )
        for entry in metadata["outputs"]
    )
    names = [output.name for output in outputs]
    if not outputs or len(set(names)) != len(names):
        raise ValueError(f"outputs are called {names}; there must be at least one, and no name twice")
    for output in outputs:
        has_grid = output.scale is not None and output.zero_point is not None
        if output.kind not in OUTPUT_KINDS or has_grid != (output.kind == "codes") or not output.shape:
            raise ValueError(
                f"output {output.name!r} is {output.kind!r} of shape {list(output.shape)} with scale {output.scale}"
            )
        if has_grid and not (output.zero_point or 0) <= 255:
            raise ValueError(f"output {output.name!r} has the zero point {output.zero_point}")
        if output.scale is not None and not 0 < np.float32(output.scale) < np.inf:
            raise ValueError(f"output {output.name!r} has the scale {output.scale}")
        if output.kind == "logits" and len(output.shape) != 1:
            raise ValueError(f"output {output.name!r} is a row of logits of shape {list(output.shape)}")
    return outputs
