"""How long does a command take, and how much memory does it hold at its peak?

`measure` runs this file as a script:

    python -P process_cost.py SECONDS PARENT COMMAND [ARGUMENT...]

which prints the command's exit code, wall time in seconds and peak resident memory in bytes as JSON, and ends with
code 3 where the command took more than SECONDS ("inf" for any time) and was killed. The measuring process imports
nothing large and does nothing else, because Linux counts what a process holds when it forks as its child's, too:
measured from a process that has loaded torch, `true` takes hundreds of megabytes.

The command never outlives whoever asked for it. It and the measuring process are a group of their own, which Ctrl-C in
a terminal does not reach, and which `measure` kills if it is interrupted itself; where a time is set, the measuring
process also kills the command when its own parent, the process PARENT, is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import IO

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
_TOO_LONG = 3
_POLL_SECONDS = 0.005


@dataclass(frozen=True, kw_only=True)
class ProcessCost:
    """What a process took.

    Attributes:
        exit_code: of the process; a signal that ended it, negative.
        seconds: wall time from its start to its end.
        peak_bytes: resident memory, its children's not included; 0 on Windows.
    """

    exit_code: int
    seconds: float
    peak_bytes: int


def measure(command: Sequence[str], *, timeout: float = float("inf"), stderr: IO[bytes] | None = None) -> ProcessCost:
    """Run a command to its end, measured by a small process in between; its standard output is not shown.

    Args:
        command: with its arguments.
        timeout: seconds after which it is killed.
        stderr: where its standard error goes, by default where this process's goes.

    Raises:
        TimeoutError: it took too long.
        OSError: the command cannot be started.
    """
    measuring = subprocess.Popen(  # noqa: S603 - the command line is the caller's own
        [sys.executable, "-P", __file__, str(timeout), str(os.getpid()), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = measuring.communicate()
    except BaseException:
        _kill_group(measuring)
        raise
    if measuring.returncode == _TOO_LONG:
        raise TimeoutError(f"{' '.join(command)} took longer than {timeout:g} seconds.")
    if measuring.returncode != 0:
        raise OSError(f"{' '.join(command)} could not be measured.")
    return ProcessCost(**json.loads(printed))


def _kill_group(measuring: subprocess.Popen[str]) -> None:
    """Kill the measuring process and the command."""
    if sys.platform == "win32":
        measuring.kill()
    else:
        with contextlib.suppress(ProcessLookupError):  # both have ended
            os.killpg(measuring.pid, signal.SIGKILL)
    measuring.wait()


def _run(command: Sequence[str], timeout: float, parent: int) -> ProcessCost | None:
    """Run a command; None if it had to be killed, because it took too long or this process has lost its parent."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # noqa: S603 - as above
    while True:
        ended = _ended(process, wait=timeout == float("inf"))
        seconds = time.perf_counter() - start
        if ended is not None:
            return ProcessCost(exit_code=ended[0], seconds=seconds, peak_bytes=ended[1])
        if seconds > timeout or (sys.platform != "win32" and os.getppid() != parent):
            process.kill()
            process.wait()
            return None
        time.sleep(_POLL_SECONDS)


def _ended(process: subprocess.Popen[bytes], *, wait: bool) -> tuple[int, int] | None:
    """Return exit code and peak memory of a process that has ended; None of one that has not, unless it may wait."""
    if sys.platform == "win32":  # it tells no memory afterwards
        code = process.wait() if wait else process.poll()
        return None if code is None else (code, 0)
    ended, status, usage = os.wait4(process.pid, 0 if wait else os.WNOHANG)
    return (os.waitstatus_to_exitcode(status), usage.ru_maxrss * _RSS_UNIT) if ended else None


if __name__ == "__main__":
    cost = _run(sys.argv[3:], float(sys.argv[1]), int(sys.argv[2]))
    if cost is None:
        sys.exit(_TOO_LONG)
    sys.stdout.write(json.dumps(asdict(cost)) + "\n")
