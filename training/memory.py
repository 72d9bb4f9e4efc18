"""Refuse allocations that exceed this machine's memory in advance: systems may notice only on first use."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from qil_deploy.errors import ConfigError

_SHARE = 0.8  # of the memory, the rest is for everything else


def require_memory(size: float, what: str, advice: str) -> None:
    """Check that `size` bytes fit into this machine's memory.

    Args:
        size: in bytes.
        what: takes them; the sentence begins with it.
        advice: what to change.

    Raises:
        ConfigError: they do not fit.
    """
    memory = memory_of_machine()
    if memory is not None and size > _SHARE * memory:
        raise ConfigError(f"{what} would take {_gigabytes(size)}, and this machine has {_gigabytes(memory)}; {advice}.")


def memory_of_machine() -> int | None:
    """Return the bytes of memory of this machine, or of its container; None if the system does not report it."""
    sizes = []
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
            sizes.append(int(path.read_text(encoding="ascii")))
    return min(sizes, default=None)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size < 1e18 else "more than a million TB"
