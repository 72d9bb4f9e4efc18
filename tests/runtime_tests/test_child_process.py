"""Time and memory of a process, measured from one that itself holds a lot of memory."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qil_deploy.runtime_tests.child_process import run_apart
from tests.runtime_tests.patience import wait_for

MEGABYTE = 10**6


def run(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_peak_memory_is_the_child_s_alone() -> None:
    held = np.ones(300 * MEGABYTE, np.uint8)
    small = run_apart(run("pass"))
    large = run_apart(run("x = bytearray(b'x' * 100_000_000)"))
    assert held.sum() == 300 * MEGABYTE
    assert small.peak_bytes < 100 * MEGABYTE
    assert large.peak_bytes - small.peak_bytes >= 100 * MEGABYTE


def test_wall_time_counts_sleeping() -> None:
    assert run_apart(run("import time; time.sleep(0.5)")).seconds >= 0.5


def test_the_exit_code_is_reported() -> None:
    assert run_apart(run("print('noise'); raise SystemExit(3)")).exit_code == 3


def test_a_command_that_cannot_be_started_is_an_error() -> None:
    with pytest.raises(OSError, match="no_such_command_anywhere could not be measured"):
        run_apart(["no_such_command_anywhere"])


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are listed on Linux alone")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_command_does_not_outlive_whoever_asked_for_it(tmp_path: Path, ending: signal.Signals) -> None:
    sign = tmp_path / "started"
    code = f"import pathlib, time; pathlib.Path({str(sign)!r}).touch(); time.sleep(600)"
    asking = (
        "import signal, sys; from qil_deploy.runtime_tests.child_process import run_apart\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"run_apart([sys.executable, '-c', {code!r}], timeout=300)\n"
    )
    with subprocess.Popen([sys.executable, "-P", "-c", asking], stderr=subprocess.DEVNULL) as process:
        wait_for(sign.exists)
        process.send_signal(ending)
    wait_for(lambda: not processes_of(sign))


def processes_of(path: Path) -> list[Path]:
    """Return the processes whose command line contains a path."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            if str(path).encode() in line.read_bytes():
                found.append(line)
    return found
