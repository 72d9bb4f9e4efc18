"""A limit on the memory that this process may still allocate; allocations beyond it fail."""

from __future__ import annotations

from typing import Final

import psutil

_SAID: Final = ("bad_alloc", "unable to allocate", "failed to allocate", "out of memory", "memoryerror")


def limit_memory(more: int) -> bool:
    """Let this process and its child processes allocate at most `more` bytes beyond the present ones.

    Writable memory that is no file's counts, on Linux; elsewhere nothing is limited.

    Returns:
        Whether the limit holds.
    """
    if not psutil.LINUX:
        return False
    process = psutil.Process()
    _, hard = process.rlimit(psutil.RLIMIT_DATA)
    limit = process.memory_info().data + more
    limit = limit if hard == psutil.RLIM_INFINITY else min(limit, hard)
    process.rlimit(psutil.RLIMIT_DATA, (limit, hard))
    return True


def is_out_of_memory(message: str) -> bool:
    """Whether an error message, NumPy's or ONNX Runtime's, reports a failed allocation."""
    text = message.lower()
    return any(part in text for part in _SAID)
