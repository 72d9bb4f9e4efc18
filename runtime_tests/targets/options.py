"""Options of a run on a target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of a run on a target.

    Attributes:
        levels: graph-optimization levels.
        threads, batch: threads of ONNX Runtime and images per run.
        repeats: runs to time. Under an emulator times mean nothing.
        timeout: seconds without a sign of progress after which it is given up.
        kernels: a library of kernels for the target's processor, which every session registers; None for none.
    """

    levels: tuple[str, ...] = ("all",)
    threads: int = 1
    batch: int = 1
    repeats: int = 0
    timeout: float = 300.0
    kernels: Path | None = None
