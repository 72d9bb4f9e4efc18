"""How long does a command take, and how much memory does it hold at its peak?

    python benchmarks/process_cost.py COMMAND [ARGUMENT...]

prints the command's exit code, wall time in seconds and peak resident memory in bytes as JSON. The measuring process
imports nothing large and does nothing else, because Linux counts what a process holds when it forks as its child's,
too: measured from a process that has loaded torch, `true` takes hundreds of megabytes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes


@dataclass(frozen=True, kw_only=True)
class ProcessCost:
    """What a process took.

    Attributes:
        exit_code: of the process.
        seconds: wall time from its start to its end.
        peak_bytes: resident memory, its children's not included.
    """

    exit_code: int
    seconds: float
    peak_bytes: int


def measure(command: Sequence[str]) -> ProcessCost:
    """Run a command to its end, measured by a small process in between; its output is not shown.

    Raises:
        OSError: the command cannot be started.
    """
    finished = subprocess.run(  # noqa: S603 - the command line is the caller's own
        [sys.executable, __file__, *command], stdout=subprocess.PIPE, text=True, check=False
    )
    if finished.returncode != 0:
        raise OSError(f"{' '.join(command)} could not be measured.")
    return ProcessCost(**json.loads(finished.stdout))


def _run(command: Sequence[str]) -> ProcessCost:
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603 - as above
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    return ProcessCost(
        exit_code=os.waitstatus_to_exitcode(status), seconds=seconds, peak_bytes=usage.ru_maxrss * _RSS_UNIT
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(_run(sys.argv[1:]))) + "\n")
