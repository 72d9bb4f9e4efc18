"""Options of a run on a target."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run a model on a target.

    Attributes:
        levels: graph-optimization levels.
        threads, batch: threads of ONNX Runtime and images per run.
        repeats: runs to time. Under an emulator times mean nothing.
        timeout: seconds without a sign of progress after which it is given up.
    """

    levels: tuple[str, ...] = ("all",)
    threads: int = 1
    batch: int = 1
    repeats: int = 0
    timeout: float = 300.0
