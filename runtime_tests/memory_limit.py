"""A bound on the memory that this process may still take: where more is asked for, the allocation fails."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

_STATUS: Final = Path("/proc/self/status")
_SAID: Final = ("bad_alloc", "unable to allocate", "failed to allocate", "out of memory", "memoryerror")
_DATA: Final = re.compile(r"^VmData:\s+(\d+) kB$", re.MULTILINE)


def limit_memory(more: int) -> bool:
    """Let this process and the processes that it starts take at most `more` bytes beyond what it holds now.

    Counted is writable memory that is no file's, on Linux; elsewhere nothing is limited.

    Returns:
        Whether the limit holds.
    """
    if sys.platform != "linux":
        return False
    import resource

    found = _DATA.search(_STATUS.read_text(encoding="ascii", errors="replace"))
    if found is None:
        return False
    limit = int(found[1]) * 1024 + more
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    return True


def is_out_of_memory(message: str) -> bool:
    """Whether an error's text, NumPy's or ONNX Runtime's, says that memory could not be had."""
    text = message.lower()
    return any(part in text for part in _SAID)
