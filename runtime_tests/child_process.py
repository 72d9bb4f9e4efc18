"""Run a command in a process of its own, and measure its duration and peak memory.

A model that crashes ONNX Runtime, hangs or takes all memory does so there, under control. `run_apart` runs this file
as a script in between:

    python -P child_process.py SECONDS PARENT COMMAND [ARGUMENT...]

which prints the command's exit code, wall time in seconds and peak resident memory in bytes as JSON, and ends with
code 3 where the command took more than SECONDS ("inf" for any time) and was killed. The process in between imports
nothing large and does nothing else, because Linux counts what a process holds when it forks as its child's, too:
measured from a process that has loaded torch, `true` takes hundreds of megabytes.

The command never outlives its caller. It and the process in between are out of reach of Ctrl-C in a
terminal, and `run_apart` kills both if it is interrupted itself; where a time is set, the process in between also kills
the command when its own parent, the process PARENT, is gone.
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

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
_TOO_LONG = 3
_POLL_SECONDS = 0.005
_MOST_ERRORS = 2**16  # bytes of standard error that are read, from its end


@dataclass(frozen=True, kw_only=True)
class Ended:
    """End of a process: exit code, duration, memory.

    Attributes:
        exit_code: a signal that ended it, negative.
        seconds: wall time from its start to its end.
        peak_bytes: resident memory, its children's not included; 0 on Windows.
        errors: the end of what it wrote to standard error, where that is not shown.
    """

    exit_code: int
    seconds: float
    peak_bytes: int
    errors: str = ""

    @property
    def signal(self) -> str | None:
        """The signal that ended the process, by name; None if none did."""
        if self.exit_code >= 0:
            return None
        try:
            return signal.Signals(-self.exit_code).name
        except ValueError:
            return f"signal {-self.exit_code}"

    @property
    def last_words(self) -> str:
        """The last non-empty line on standard error, or ''."""
        lines = [line.strip() for line in self.errors.splitlines() if line.strip()]
        return lines[-1] if lines else ""


def run_apart(command: Sequence[str], *, timeout: float = float("inf"), show_errors: bool = False) -> Ended:
    """Run a command to its end; its standard output is not shown.

    Args:
        command: with its arguments.
        timeout: seconds after which it is killed.
        show_errors: whether its standard error goes where this process's goes.

    Raises:
        TimeoutError: it took too long.
        OSError: the command cannot be started.
    """
    import tempfile  # not in the process in between, which is this file, too

    with tempfile.TemporaryFile() as errors:
        between = subprocess.Popen(  # noqa: S603 - the command line is the caller's own
            [sys.executable, "-P", __file__, str(timeout), str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=None if show_errors else errors,
            text=True,
            start_new_session=True,
        )
        try:
            printed, _ = between.communicate()
        except BaseException:
            _kill_both(between)
            raise
        errors.seek(max(errors.seek(0, os.SEEK_END) - _MOST_ERRORS, 0))
        said = errors.read().decode(errors="replace")
    if between.returncode == _TOO_LONG:
        raise TimeoutError(f"{' '.join(command)} took longer than {timeout:g} seconds.")
    if between.returncode != 0:
        raise OSError(f"{' '.join(command)} could not be measured.")
    return Ended(**json.loads(printed) | {"errors": said})


def _kill_both(between: subprocess.Popen[str]) -> None:
    """Kill the intermediate process, and the command."""
    if sys.platform == "win32":
        between.kill()
    else:
        with contextlib.suppress(ProcessLookupError):  # both have ended
            os.killpg(between.pid, signal.SIGKILL)
    between.wait()


def _run(command: Sequence[str], timeout: float, parent: int) -> Ended | None:
    """Run a command; None if it was killed, because it took too long or this process has lost its parent."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # noqa: S603 - as above
    while True:
        ended = _exit_and_peak(process, wait=timeout == float("inf"))
        seconds = time.perf_counter() - start
        if ended is not None:
            return Ended(exit_code=ended[0], seconds=seconds, peak_bytes=ended[1])
        if seconds > timeout or (sys.platform != "win32" and os.getppid() != parent):
            process.kill()
            process.wait()
            return None
        time.sleep(_POLL_SECONDS)


def _exit_and_peak(process: subprocess.Popen[bytes], *, wait: bool) -> tuple[int, int] | None:
    """Return exit code and peak memory of a process that has ended; None if it has not, unless it may wait."""
    if sys.platform == "win32":  # it tells no memory afterwards
        code = process.wait() if wait else process.poll()
        return None if code is None else (code, 0)
    ended, status, usage = os.wait4(process.pid, 0 if wait else os.WNOHANG)
    return (os.waitstatus_to_exitcode(status), usage.ru_maxrss * _RSS_UNIT) if ended else None


if __name__ == "__main__":
    found = _run(sys.argv[3:], float(sys.argv[1]), int(sys.argv[2]))
    if found is None:
        sys.exit(_TOO_LONG)
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
