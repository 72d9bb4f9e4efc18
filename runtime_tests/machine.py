"""Describe the processor (instructions, caches, clock), and measure its load by other processes."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")
CPUINFO = Path("/proc/cpuinfo")
STAT = Path("/proc/stat")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
# Columns of /proc/stat, in clock ticks. Guests are counted in "user", too.
_COLUMNS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_FEWEST_TICKS = 100  # a second of one processor; of less, shares would be mostly chance
_IDLE = ("idle", "iowait", "steal")


@dataclass(frozen=True, kw_only=True)
class Cache:
    """One cache of the first processor: its level (1 is nearest), kind ("Data", "Instruction", "Unified") and size."""

    level: int
    kind: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Hardware, as far as Linux reports it; empty on other systems.

    Attributes:
        flags: instruction set extensions, sorted.
        governor: who sets the clock rate ("performance", "powersave", ...); None if unknown, as in most virtual
            machines.
        caches: of the first processor.
        virtual: whether a hypervisor says that this is a virtual machine.
        load_average: processes that wanted to run, over the minute before the measurement; None where unknown.
    """

    flags: tuple[str, ...]
    governor: str | None
    caches: tuple[Cache, ...]
    virtual: bool
    load_average: float | None

    @property
    def last_level_bytes(self) -> int | None:
        """Size of the largest cache, if known."""
        return max((cache.bytes for cache in self.caches), default=None)


@dataclass(frozen=True, kw_only=True)
class Activity:
    """Activity of processors during a measurement, as shares of their time.

    None if the system does not tell, or the measurement was too short.

    Attributes:
        cpus: which processors.
        others: share that went to other processes than this one and its children.
        steal: share that a hypervisor gave to other virtual machines.
    """

    cpus: tuple[int, ...]
    others: float | None
    steal: float | None


@dataclass(frozen=True)
class Ticks:
    """Counters at one moment, in clock ticks: busy, stolen and all time of some processors, and this process's own."""

    busy: int
    steal: int
    whole: int
    own: float


def describe_machine(cpus: Path = CPUS, cpuinfo: Path = CPUINFO) -> Machine:
    """Describe the hardware this process runs on."""
    flags = cpu_flags(cpuinfo)
    return Machine(
        flags=flags,
        governor=read_line(cpus / "cpu0" / "cpufreq" / "scaling_governor") or None,
        caches=cpu_caches(cpus / "cpu0" / "cache"),
        virtual="hypervisor" in flags,
        load_average=_load_average(),
    )


def usable_cpus() -> tuple[int, ...]:
    """Return the logical processors that this process may use; none if the system does not report them."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def cpu_flags(cpuinfo: Path) -> tuple[str, ...]:
    """Return the instruction set extensions in a file like `/proc/cpuinfo` ("flags" on x86, "Features" on arm)."""
    return tuple(sorted(cpuinfo_entry(("flags", "Features"), cpuinfo).split()))


def cpuinfo_entry(keys: Collection[str], cpuinfo: Path = CPUINFO) -> str:
    """Return the first non-empty value of some keys in a file like `/proc/cpuinfo`, else ''."""
    entries = (line.partition(":") for line in read_text(cpuinfo).splitlines())
    return next((value.strip() for key, _, value in entries if key.strip() in keys and value.strip()), "")


def cpu_caches(folder: Path) -> tuple[Cache, ...]:
    """Return the caches in a folder like `/sys/devices/system/cpu/cpu0/cache`; unreadable entries are left out."""
    caches = []
    for index in sorted(folder.glob("index*")):
        level, kind, size = (read_line(index / name) for name in ("level", "type", "size"))
        number = size.rstrip("KMG")
        if level.isdecimal() and number.isdecimal():
            caches.append(Cache(level=int(level), kind=kind, bytes=int(number) * _UNITS.get(size[-1], 1)))
    return tuple(caches)


def read_line(path: Path) -> str:
    """Return the first line of a file of `/sys` without spaces around it, '' if there is none."""
    return next(iter(read_text(path).splitlines()), "").strip()


def read_ticks(cpus: Sequence[int], stat: Path = STAT) -> Ticks | None:
    """Read the counters of some processors from a file like `/proc/stat`; None if the system does not report them."""
    names = {f"cpu{cpu}" for cpu in cpus}
    rows = [line.split() for line in read_text(stat).splitlines() if line.split(" ", 1)[0] in names]
    try:
        counts = [dict(zip(_COLUMNS, map(int, row[1:]), strict=False)) for row in rows]
    except ValueError:
        return None
    if len(counts) != len(names) or not counts or any(len(row) != len(_COLUMNS) for row in counts):
        return None
    whole = sum(sum(row.values()) for row in counts)
    idle = sum(row[name] for row in counts for name in _IDLE)
    return Ticks(busy=whole - idle, steal=sum(row["steal"] for row in counts), whole=whole, own=_own_ticks())


def activity_between(cpus: Sequence[int], before: Ticks | None, after: Ticks | None) -> Activity:
    """Return the activity of processors between two readings."""
    if before is None or after is None or after.whole - before.whole < _FEWEST_TICKS:
        return Activity(cpus=tuple(cpus), others=None, steal=None)
    whole = after.whole - before.whole
    others = (after.busy - before.busy) - (after.own - before.own)
    return Activity(
        cpus=tuple(cpus),
        others=min(max(others / whole, 0.0), 1.0),
        steal=min(max((after.steal - before.steal) / whole, 0.0), 1.0),
    )


def _own_ticks() -> float:
    times = os.times()
    return (times.user + times.system + times.children_user + times.children_system) * os.sysconf("SC_CLK_TCK")


def _load_average() -> float | None:
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):  # Windows has none
        return None


def read_text(path: Path) -> str:
    """Return the content of a system file, '' if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
