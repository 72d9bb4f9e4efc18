"""Extend glibc's heap by addresses whose memory comes in huge pages.

A step of training walks through hundreds of MiB, and the processor looks up the address of every page of 4 KiB, which
is expensive in virtual machines. By default, Linux gives pages of 2 MiB only to those who ask (`madvise`). The heap is
extended once, in addresses and not in memory: a page is taken when it is first written to, as before.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import Final

_SHARE: Final = 2  # extend by half of the machine's memory; what exceeds that lies in small pages
_BELOW: Final = 1 << 16  # bytes by which a block stays below the size from which glibc maps it outside of the heap
_OVERCOMMIT: Final = Path("/proc/sys/vm/overcommit_memory")
_STRICT: Final = "2"  # addresses without memory count as well


def extend_heap(library: ctypes.CDLL, mapped_from: int) -> int:
    """Extend the heap of this process by half of the machine's memory, in huge pages where the system has them.

    Nothing happens where addresses are limited (`ulimit -v`, strict overcommit).

    Args:
        library: the C library, glibc, set not to return free memory at the end of its heap.
        mapped_from: size in bytes from which it maps a block outside of the heap.

    Returns:
        the number of bytes.
    """
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or not _addresses_are_free():
        return 0
    malloc, free, madvise = library.malloc, library.free, library.madvise
    malloc.argtypes, malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
    free.argtypes, free.restype = (ctypes.c_void_p,), None
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    size = mapped_from - _BELOW
    wanted = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE // _SHARE
    blocks: list[int] = []
    while (len(blocks) + 1) * size <= wanted:
        block = malloc(size)
        if not block:
            break
        blocks.append(block)
        begin = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
        madvise(begin, (block + size - begin) // mmap.PAGESIZE * mmap.PAGESIZE, advice)
    for block in blocks:  # they join the free memory at the end of the heap, from which tensors are cut
        free(block)
    return len(blocks) * size


def _addresses_are_free() -> bool:
    """Return whether addresses without memory behind them count against no limit."""
    import resource  # Unix alone has it

    limits = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    if any(resource.getrlimit(limit)[0] != resource.RLIM_INFINITY for limit in limits):
        return False
    try:
        return _OVERCOMMIT.read_text().strip() != _STRICT
    except OSError:
        return False
