"""Empty the caches before a run by reading enough other memory that nothing of the model remains in them."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

LARGEST_BUFFER = 256 * 2**20
_ASSUMED_CACHE = 32 * 2**20  # where the system does not tell
_LINE_WORDS = 8  # 64 bytes: the line of nearly all processors, and a part of it on the others


class CacheEvictor:
    """A buffer that is read whole to empty caches.

    Args:
        last_level_bytes: size of the last-level cache, if that is known.

    Attributes:
        bytes: size of the buffer: twice the last-level cache, but at most `LARGEST_BUFFER`.
        warning: a sentence if the last-level cache is larger than that, else None.
    """

    def __init__(self, last_level_bytes: int | None) -> None:
        cache = last_level_bytes or _ASSUMED_CACHE
        self.bytes = min(2 * cache, LARGEST_BUFFER)
        self.warning = None
        if self.bytes < cache:
            self.warning = (
                f"cold runs are not quite cold: the last-level cache of {cache / 2**20:.0f} MiB is larger than the "
                f"buffer of {self.bytes / 2**20:.0f} MiB that is read before them, and keeps a part of the model."
            )
        # Ones, not zeros: the system gives untouched zeros one shared page, which would not fill any cache.
        self._buffer = np.ones(self.bytes // 8, np.uint64)

    def evict(self, cpus: Sequence[int] = ()) -> None:
        """Read one word of each cache line, on several processors in turn: cores have caches of their own."""
        if len(cpus) < 2:
            self._buffer[::_LINE_WORDS].sum()
            return
        before = os.sched_getaffinity(0)
        try:
            for cpu in reversed(cpus):
                os.sched_setaffinity(0, {cpu})
                self._buffer[::_LINE_WORDS].sum()
        finally:
            os.sched_setaffinity(0, before)
