"""Linux's description of a machine, from made-up files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qil_deploy.runtime_tests.machine import (
    Activity,
    Cache,
    Ticks,
    activity_between,
    cpu_flags,
    describe_machine,
    read_ticks,
)

STAT = """cpu  40 0 40 400 0 0 0 4 0 0
cpu0 10 1 20 100 5 1 2 3 7 0
cpu1 30 0 20 300 0 0 0 1 0 0
intr 1 2 3
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_hardware_is_described_as_the_system_describes_it(tmp_path: Path) -> None:
    for index, (level, kind, size) in enumerate(
        [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2M"), ("3", "Unified", "266240K")]
    ):
        for name, text in (("level", level), ("type", kind), ("size", size)):
            write(tmp_path / "cpus" / "cpu0" / "cache" / f"index{index}" / name, f"{text}\n")
    write(tmp_path / "cpus" / "cpu0" / "cache" / "index9" / "level", "4\n")  # and no size
    write(tmp_path / "cpus" / "cpu0" / "cpufreq" / "scaling_governor", "powersave\n")
    write(tmp_path / "cpuinfo", "processor\t: 0\nflags\t\t: fpu avx2 hypervisor\n\nflags\t\t: other\n")
    machine = describe_machine(tmp_path / "cpus", tmp_path / "cpuinfo")
    assert machine.flags == ("avx2", "fpu", "hypervisor")
    assert machine.governor == "powersave"
    assert machine.virtual
    assert machine.caches == (
        Cache(level=1, kind="Data", bytes=48 * 2**10),
        Cache(level=1, kind="Instruction", bytes=32 * 2**10),
        Cache(level=2, kind="Unified", bytes=2 * 2**20),
        Cache(level=3, kind="Unified", bytes=260 * 2**20),
    )
    assert machine.last_level_bytes == 260 * 2**20


def test_a_system_that_says_nothing_leaves_it_empty(tmp_path: Path) -> None:
    machine = describe_machine(tmp_path, tmp_path / "cpuinfo")
    assert (machine.flags, machine.governor, machine.caches, machine.virtual) == ((), None, (), False)
    assert machine.last_level_bytes is None


def test_arm_calls_its_flags_features(tmp_path: Path) -> None:
    write(tmp_path / "cpuinfo", "processor\t: 0\nFeatures\t: fp asimd asimddp\n")
    assert cpu_flags(tmp_path / "cpuinfo") == ("asimd", "asimddp", "fp")


def test_ticks_are_those_of_the_processors_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "stat", STAT)
    ticks = read_ticks([0], tmp_path / "stat")
    assert ticks is not None
    assert (ticks.busy, ticks.steal, ticks.whole) == (34, 3, 142)
    both = read_ticks([0, 1], tmp_path / "stat")
    assert both is not None
    assert (both.busy, both.steal, both.whole) == (84, 4, 493)
    assert both.own == pytest.approx(sum(os.times()[:4]) * os.sysconf("SC_CLK_TCK"), abs=100)


@pytest.mark.parametrize("text", ["", "cpu0 1 2 3\n", "cpu0 a b c d e f g h\n", "cpu1 10 1 20 100 5 1 2 3 7 0\n"])
def test_counters_that_are_not_there_are_unknown(tmp_path: Path, text: str) -> None:
    write(tmp_path / "stat", text)
    assert read_ticks([0], tmp_path / "stat") is None
    assert read_ticks([], tmp_path / "stat") is None
    assert read_ticks([0], tmp_path / "absent") is None


@pytest.mark.parametrize(
    ("after", "others", "steal"),
    [
        (Ticks(busy=900, steal=0, whole=1000, own=900), 0.0, 0.0),
        (Ticks(busy=900, steal=50, whole=1000, own=400), 0.5, 0.05),
        (Ticks(busy=100, steal=0, whole=1000, own=120), 0.0, 0.0),  # counters are not read at one moment
        (Ticks(busy=90, steal=0, whole=99, own=0), None, None),  # too short
        (None, None, None),
    ],
)
def test_what_is_not_ours_is_others(after: Ticks | None, others: float | None, steal: float | None) -> None:
    before = Ticks(busy=0, steal=0, whole=0, own=0)
    assert activity_between([0, 1], before, after) == Activity(cpus=(0, 1), others=others, steal=steal)
    assert activity_between([0], None, after) == Activity(cpus=(0,), others=None, steal=None)
