"""Keep freed memory with the process, so that the next step need not request it from the system again.

Each step of training allocates and frees the same tensors. Blocks above a threshold of at most 32 MiB are mapped anew
by glibc each time, and free memory at the end of its heap is returned: the system then clears the same pages, and maps
them one by one, in every step. With the thresholds raised a step finds them as the one before left them. The process
holds what the largest step took, until it ends.
"""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = -1
# Larger blocks, such as data sets, still go back when they are freed. The manual of glibc promises no more than 32 MiB.
_MAPPED_FROM = (1 << 30, 32 << 20)
_OF_ENVIRONMENT = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its next allocations; return whether the C library supports that.

    Nothing happens where the C library has no `mallopt`, or where the environment sets a threshold itself.
    """
    if any(name in os.environ for name in _OF_ENVIRONMENT) or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function; TypeError: Windows
        return False
    return any(mallopt(_M_MMAP_THRESHOLD, size) for size in _MAPPED_FROM) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
