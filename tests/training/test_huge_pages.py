"""The heap of a training process lies in huge pages, where they are to be had."""

from __future__ import annotations

import mmap
import os
import platform
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qil_deploy.training import huge_pages
from qil_deploy.training.huge_pages import extend_heap
from tests.training.default_allocator import output_of

pytestmark = pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no huge pages")

BLOCK = 1 << 30
# Prints the flags of the mapping in which a large new tensor lies, and by how many MiB the process grew before that.
FLAGS = """
import re
from pathlib import Path
import torch
from qil_deploy.training.freed_memory import keep_freed_memory

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

before = resident()
assert keep_freed_memory()
grown = resident() - before
address = torch.empty(64 << 20).data_ptr() + (128 << 20)  # its middle; no free memory below the extension is as large
for part in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())[1:]:
    begin, end = (int(number, 16) for number in part.split()[0].split("-"))
    if begin <= address < end:
        print(grown >> 10, re.search(r"VmFlags: (.*)", part)[1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has its settings")
@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="this kernel has no huge pages")
def test_a_tensor_lies_where_huge_pages_were_asked_for() -> None:
    """The extension itself takes no memory."""
    grown, *flags = output_of(FLAGS).split()
    assert int(grown) < 64
    assert "hg" in flags


class Function:
    """A function of a C library, which records its calls and can be told its types."""

    def __init__(self, function: Callable[..., int | None]) -> None:
        self.function, self.calls = function, list[tuple[int, ...]]()
        self.argtypes: object = None
        self.restype: object = None

    def __call__(self, *arguments: int) -> int | None:
        self.calls.append(arguments)
        return self.function(*arguments)


class Library:
    """A C library that has a number of blocks to give, each 16 bytes after the start of a page."""

    def __init__(self, blocks: int) -> None:
        addresses = [(1 << 40) + index * (BLOCK + mmap.PAGESIZE) + 16 for index in range(blocks)]
        self.malloc = Function(lambda _size: addresses.pop(0) if addresses else None)
        self.free = Function(lambda _address: None)
        self.madvise = Function(lambda *_: 0)


@pytest.fixture
def unlimited(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Lift all limits and give the machine 7 GiB; return the file that says how memory is promised."""
    promised = tmp_path / "overcommit_memory"
    promised.write_text("0\n")
    monkeypatch.setattr(huge_pages, "_OVERCOMMIT", promised)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    monkeypatch.setattr(os, "sysconf", lambda _: (7 << 30) // mmap.PAGESIZE)
    return promised


def extended(library: Any) -> int:  # noqa: ANN401 - stands for a ctypes library
    return extend_heap(library, BLOCK)


@pytest.mark.usefixtures("unlimited")
@pytest.mark.parametrize(("available", "taken"), [(9, 3), (2, 2), (0, 0)])
def test_blocks_of_half_the_memory_are_advised_and_freed(available: int, taken: int) -> None:
    library = Library(available)
    size = extended(library)
    requested = {call[0] for call in library.malloc.calls}
    assert all(0 < block < BLOCK for block in requested)
    assert size == sum(requested) * taken
    assert len(library.free.calls) == len(library.madvise.calls) == taken
    for (block,), (begin, length, advice) in zip(library.free.calls, library.madvise.calls, strict=True):
        assert advice == mmap.MADV_HUGEPAGE
        assert begin % mmap.PAGESIZE == length % mmap.PAGESIZE == 0
        assert block <= begin < block + mmap.PAGESIZE
        assert begin + length <= block + min(requested) < begin + length + mmap.PAGESIZE


@pytest.mark.parametrize("limited", [resource.RLIMIT_AS, resource.RLIMIT_DATA])
def test_limited_addresses_are_left_to_others(monkeypatch: pytest.MonkeyPatch, unlimited: Path, limited: int) -> None:
    assert unlimited.is_file()
    monkeypatch.setattr(
        resource, "getrlimit", lambda limit: (1 << 34 if limit == limited else resource.RLIM_INFINITY,) * 2
    )
    library = Library(9)
    assert extended(library) == 0
    assert library.malloc.calls == []


@pytest.mark.parametrize("content", ["2\n", None])
def test_promised_memory_is_left_to_others(unlimited: Path, content: str | None) -> None:
    """Strict overcommit, or a system that does not tell."""
    if content is None:
        unlimited.unlink()
    else:
        unlimited.write_text(content)
    library = Library(9)
    assert extended(library) == 0
    assert library.malloc.calls == []
