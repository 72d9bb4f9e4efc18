"""Run a command in a process of its own, and say how it ended.

What crashes ONNX Runtime, hangs or takes all memory does so there, where it can be stopped.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .process_cost import measure

_MOST_ERRORS: Final = 2**16  # bytes of standard error that are read, from its end


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a process ended.

    Attributes:
        exit_code: a signal that ended it, negative.
        peak_bytes: the memory it held.
        errors: the end of what it wrote to standard error.
    """

    exit_code: int
    peak_bytes: int
    errors: str

    @property
    def signal(self) -> str | None:
        """The signal that ended it, by its name; None if none did."""
        if self.exit_code >= 0:
            return None
        try:
            return signal.Signals(-self.exit_code).name
        except ValueError:
            return f"signal {-self.exit_code}"

    @property
    def last_words(self) -> str:
        """The last line on standard error that is not empty, or ''."""
        lines = [line.strip() for line in self.errors.splitlines() if line.strip()]
        return lines[-1] if lines else ""


def run_apart(command: Sequence[str], *, timeout: float) -> Ended:
    """Run a command to its end; its standard output is not shown.

    Raises:
        TimeoutError: it took more than `timeout` seconds, and was killed.
        OSError: it cannot be started.
    """
    with tempfile.TemporaryFile() as errors:
        cost = measure(command, timeout=timeout, stderr=errors)
        errors.seek(max(errors.seek(0, os.SEEK_END) - _MOST_ERRORS, 0))
        said = errors.read().decode(errors="replace")
    return Ended(exit_code=cost.exit_code, peak_bytes=cost.peak_bytes, errors=said)
