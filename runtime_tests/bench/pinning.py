"""Keep threads on processors of their own, so that none of them moves, or shares a core, during a measurement."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from qil_deploy.runtime_tests.machine import CPUS, read_line, usable_cpus

__all__ = ["choose_cpus", "pinned", "usable_cpus"]


def choose_cpus(threads: int, usable: Sequence[int], folder: Path = CPUS) -> tuple[int, ...]:
    """Choose a processor for each thread, one per core while there are cores; none if there are too few processors.

    Where cores differ, as in phones, the fastest come first.

    Args:
        threads: how many are needed.
        usable: logical processors to choose from.
        folder: says how fast they are, and which of them are one core (`/sys/devices/system/cpu`).
    """
    cores: set[str] = set()
    first: list[int] = []
    second: list[int] = []  # of cores that have one already
    for cpu in sorted(usable, key=lambda cpu: (-_capacity(folder / f"cpu{cpu}"), cpu)):
        core = read_line(folder / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu)
        (second if core in cores else first).append(cpu)
        cores.add(core)
    chosen = [*first, *second][:threads]
    return tuple(chosen) if len(chosen) == threads else ()


def _capacity(cpu: Path) -> int:
    """Return a processor's relative speed, 1024 for the fastest; 0 if unknown."""
    capacity = read_line(cpu / "cpu_capacity")
    return int(capacity) if capacity.isdecimal() else 0


@contextlib.contextmanager
def pinned(cpus: Sequence[int]) -> Iterator[None]:
    """Pin the calling thread to the first of `cpus` inside the block, and restore its affinity afterwards.

    Does nothing without `cpus`.
    """
    if not cpus:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpus[0]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
