"""The memory that this process has held at most."""

from __future__ import annotations

import resource
import sys


def peak_memory() -> int:
    """Return bytes of resident memory."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
