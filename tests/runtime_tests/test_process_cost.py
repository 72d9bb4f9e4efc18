"""Time and memory of a process, measured from one that holds a lot of memory itself."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from qil_deploy.runtime_tests.process_cost import measure

MEGABYTE = 10**6


def run(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_peak_memory_is_the_child_s_alone() -> None:
    held = np.ones(300 * MEGABYTE, np.uint8)
    small = measure(run("pass"))
    large = measure(run("x = bytearray(b'x' * 100_000_000)"))
    assert held.sum() == 300 * MEGABYTE
    assert small.peak_bytes < 100 * MEGABYTE
    assert large.peak_bytes - small.peak_bytes >= 100 * MEGABYTE


def test_wall_time_counts_sleeping() -> None:
    assert measure(run("import time; time.sleep(0.5)")).seconds >= 0.5


def test_the_exit_code_is_reported() -> None:
    assert measure(run("print('noise'); raise SystemExit(3)")).exit_code == 3


def test_a_command_that_cannot_be_started_is_an_error() -> None:
    with pytest.raises(OSError, match="no_such_command_anywhere could not be measured"):
        measure(["no_such_command_anywhere"])
