"""Threads pinned to processors, and emptied caches."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qil_deploy.runtime_tests.bench import eviction
from qil_deploy.runtime_tests.bench.eviction import CacheEvictor
from qil_deploy.runtime_tests.bench.pinning import choose_cpus, pinned, usable_cpus
from qil_deploy.runtime_tests.sessions import create_session

needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin threads")


def test_threads_get_cores_of_their_own_as_long_as_there_are_some(tmp_path: Path) -> None:
    for cpu, siblings in enumerate(["0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"]):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    assert choose_cpus(1, range(8), tmp_path) == (0,)
    assert choose_cpus(4, range(8), tmp_path) == (0, 1, 2, 3)
    assert choose_cpus(6, range(8), tmp_path) == (0, 1, 2, 3, 4, 5)
    assert choose_cpus(3, [0, 4, 5, 6], tmp_path) == (0, 5, 6)
    assert choose_cpus(4, [0, 4, 5, 6], tmp_path) == (0, 5, 6, 4)


def test_fast_cores_come_first(tmp_path: Path) -> None:
    """Four slow cores, three fast ones and a faster one, as in a phone."""
    for cpu, capacity in enumerate([250, 250, 250, 250, 870, 870, 870, 1024]):
        (tmp_path / f"cpu{cpu}").mkdir()
        (tmp_path / f"cpu{cpu}" / "cpu_capacity").write_text(f"{capacity}\n")
    assert choose_cpus(1, range(8), tmp_path) == (7,)
    assert choose_cpus(5, range(8), tmp_path) == (7, 4, 5, 6, 0)


def test_where_threads_do_not_fit_none_is_pinned(tmp_path: Path) -> None:
    assert choose_cpus(3, [0, 1], tmp_path) == ()
    assert choose_cpus(1, [], tmp_path) == ()
    assert choose_cpus(2, [3, 9], tmp_path) == (3, 9), "a system that says nothing of cores"


@needs_affinity
def test_a_thread_is_pinned_inside_the_block_alone() -> None:
    before = os.sched_getaffinity(0)
    cpu = usable_cpus()[-1]
    with pinned([cpu]):
        assert os.sched_getaffinity(0) == {cpu}
    assert os.sched_getaffinity(0) == before
    with contextlib.suppress(RuntimeError), pinned([cpu]):
        raise RuntimeError
    assert os.sched_getaffinity(0) == before
    with pinned([]):
        assert os.sched_getaffinity(0) == before


@needs_affinity
@pytest.mark.skipif(len(usable_cpus()) < 2, reason="this process may use one processor only")
def test_the_runtime_s_own_threads_are_pinned_to_the_other_processors(write_model: Callable[..., Path]) -> None:
    tasks = Path("/proc/self/task")
    patience = time.monotonic() + 60
    before = set(tasks.iterdir())
    cpus = usable_cpus()[:2]
    session = create_session(write_model(), threads=2, cpus=cpus)
    new = set(tasks.iterdir()) - before
    assert new
    # Each thread pins itself once it runs, which on a busy machine may be after the session was made.
    while {cpu for task in new for cpu in os.sched_getaffinity(int(task.name))} != {cpus[1]}:
        assert time.monotonic() < patience, "the threads are not pinned"
        time.sleep(0.01)
    assert session.get_inputs()


@pytest.mark.parametrize(
    ("cache", "largest", "size", "doubtful"),
    [
        (2**20, 2**24, 2**21, False),
        (2**20, 2**20, 2**20, False),
        (2**21, 2**20, 2**20, True),
        (None, 2**20, 2**20, True),
    ],
)
def test_the_buffer_is_twice_the_cache_or_as_large_as_allowed(
    monkeypatch: pytest.MonkeyPatch, cache: int | None, largest: int, size: int, doubtful: bool
) -> None:
    monkeypatch.setattr(eviction, "LARGEST_BUFFER", largest)
    evictor = CacheEvictor(cache)
    evictor.evict()
    assert evictor.bytes == size
    assert (evictor.warning is not None) == doubtful


@needs_affinity
def test_caches_of_every_processor_are_emptied_and_the_thread_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    visited: list[set[int]] = []

    class Recorded:
        def __getitem__(self, words: slice) -> Recorded:
            assert words == slice(None, None, 8)
            return self

        def sum(self) -> None:
            visited.append(os.sched_getaffinity(0))

    monkeypatch.setattr(np, "ones", lambda *_: Recorded())
    before = os.sched_getaffinity(0)
    cpu = usable_cpus()[0]
    CacheEvictor(2**20).evict([cpu])
    assert visited == [before], "the caller is on it already"
    CacheEvictor(2**20).evict([cpu, cpu])
    assert visited[1:] == [{cpu}, {cpu}]
    assert os.sched_getaffinity(0) == before
