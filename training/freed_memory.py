"""Keep freed memory with the process, so that the next step need not request it from the system again.

Each step of training allocates and frees the same tensors. Blocks above a threshold of at most 32 MiB are mapped anew
by glibc each time, and free memory at the end of its heap is returned: the system then clears the same pages, and maps
them one by one, in every step. With the thresholds raised a step finds them as the one before left them. The process
holds what the largest step took, until it ends. What is kept lies in huge pages (`huge_pages`).
"""

from __future__ import annotations

import ctypes
import os

from .huge_pages import extend_heap

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = -1
# Larger blocks, such as data sets, still go back when they are freed. The manual of glibc promises no more than 32 MiB.
_MAPPED_FROM = (1 << 30, 32 << 20)
_OF_ENVIRONMENT = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
_TUNABLES = ("glibc.malloc.trim_threshold", "glibc.malloc.mmap_threshold")


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its next allocations; return whether the C library supports that.

    Nothing happens where the C library has no `mallopt`, or where the environment sets a threshold itself.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if any(name in os.environ for name in _OF_ENVIRONMENT) or any(name in tunables for name in _TUNABLES):
        return False
    try:
        library = ctypes.CDLL(None)
        mallopt = library.mallopt
    except (AttributeError, OSError, TypeError):  # no such function; TypeError: Windows
        return False
    mapped_from = next((size for size in _MAPPED_FROM if mallopt(_M_MMAP_THRESHOLD, size)), None)
    if mapped_from is None or not mallopt(_M_TRIM_THRESHOLD, _NEVER):
        return False
    extend_heap(library, mapped_from)
    return True
