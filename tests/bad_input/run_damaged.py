"""Run commands on damaged inputs of one kind, and record how each ended.

    python -m tests.bad_input.run_damaged KIND COUNT SEED FOLDER RESULT

A process of its own, because it measures its own memory and may not survive. One line of JSON is written after each
command, so that a crash leaves those before it.
"""

from __future__ import annotations

import json
import signal
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bad_input.damaged_inputs import KINDS
from tests.command_line import call_command

SECONDS = 120
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Result of one command on one input.

    Attributes:
        name: what was damaged.
        arguments: of the command line.
        code: its exit code; None where an exception passed through.
        printed: how many characters it printed.
        error: what it printed to the standard error, or the traceback.
        peak: the most memory that the process held meanwhile, in bytes; 0 where the system does not tell.
        seconds: how long it took.
    """

    name: str
    arguments: list[str]
    code: int | None
    printed: int
    error: str
    peak: int
    seconds: float


def run(name: str, arguments: list[str]) -> Ending:
    """Run one command in this process."""
    _reset_peak()
    start = time.monotonic()
    signal.alarm(SECONDS)
    code, printed = None, 0
    try:
        outcome = call_command(*arguments)
        error, printed = outcome.error, len(outcome.out)
        code = outcome.code if isinstance(outcome.code, int) else None
    except BaseException:  # noqa: BLE001 - whatever passes through a command is what this looks for
        error = traceback.format_exc()
    finally:
        signal.alarm(0)
    seconds = time.monotonic() - start
    return Ending(
        name=name, arguments=arguments, code=code, printed=printed, error=error, peak=_peak(), seconds=seconds
    )


def _reset_peak() -> None:
    """Reset the kernel's record of this process's peak of resident memory."""
    if _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text("5")


def _peak() -> int:
    if not _STATUS.exists():
        return 0
    (line,) = [line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(line.split()[1])


def _give_up(*_: object) -> None:
    raise TimeoutError(f"no end after {SECONDS} seconds")


def main(kind: str, count: int, seed: int, folder: Path, result: Path) -> None:
    """Run every command on every input of one kind."""
    signal.signal(signal.SIGALRM, _give_up)
    with result.open("w") as stream:
        for case in KINDS[kind](folder, count, seed):
            for arguments in case.commands:
                case.place()
                stream.write(json.dumps(asdict(run(case.name, arguments))) + "\n")
                stream.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]))
