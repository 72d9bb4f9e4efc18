"""Freed memory of a training process stays with it."""

from __future__ import annotations

import ctypes
import platform

import pytest

from qil_deploy.training.freed_memory import keep_freed_memory
from tests.training.default_allocator import SETTINGS, output_of

# What glibc maps by default, again and again; a page that is touched for the first time is a minor fault.
FAULTS = """
import resource, sys
import torch
from qil_deploy.training.freed_memory import keep_freed_memory

torch.set_num_threads(1)
if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(20):  # until small blocks that stay have found their places between the large ones
    torch.zeros(16 << 20).add_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.zeros(16 << 20).add_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    return int(output_of(FAULTS, how))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have thresholds of their own")
def test_a_block_that_was_freed_is_not_fetched_from_the_system_again() -> None:
    assert faults("kept") * 2 < faults("given back")


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_a_c_library_without_thresholds_is_left_alone(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def none_there(_name: None) -> None:
        raise error

    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ctypes, "CDLL", none_there)
    assert not keep_freed_memory()


class Library:
    """A C library that accepts thresholds up to a maximum, and records its calls."""

    def __init__(self, largest: int) -> None:
        self.largest, self.told = largest, list[tuple[int, int]]()

    def mallopt(self, parameter: int, value: int) -> int:
        taken = value <= self.largest
        if taken:
            self.told.append((parameter, value))
        return int(taken)


@pytest.mark.parametrize(("largest", "mapped_from"), [(2**31 - 1, 1 << 30), (32 << 20, 32 << 20), (1 << 20, None)])
def test_the_largest_threshold_that_the_c_library_takes(
    monkeypatch: pytest.MonkeyPatch, largest: int, mapped_from: int | None
) -> None:
    """A fixed threshold for the heap disables the dynamic one: it is set only together with one for blocks."""
    library = Library(largest)
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    extended: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr("qil_deploy.training.freed_memory.extend_heap", lambda _, size: extended.append(size))
    assert keep_freed_memory() is (mapped_from is not None)
    assert library.told == ([] if mapped_from is None else [(-3, mapped_from), (-1, -1)])
    assert extended == ([] if mapped_from is None else [mapped_from])


@pytest.mark.parametrize(
    ("name", "value", "left"),
    [
        ("MALLOC_TRIM_THRESHOLD_", "131072", True),
        ("MALLOC_MMAP_THRESHOLD_", "131072", True),
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072", True),
        ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=131072", True),
        ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1", False),
        ("GLIBC_TUNABLES", "glibc.cpu.x86_ibt=off", False),
    ],
)
def test_what_the_environment_says_stays(monkeypatch: pytest.MonkeyPatch, name: str, value: str, left: bool) -> None:
    library = Library(2**31 - 1)
    for setting in SETTINGS:
        monkeypatch.delenv(setting, raising=False)
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr("qil_deploy.training.freed_memory.extend_heap", lambda _library, _size: 0)
    assert keep_freed_memory() is not left
    assert (library.told == []) is left
