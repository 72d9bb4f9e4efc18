"""Wait for another process as long as it shows progress, line by line, on its standard error."""

from __future__ import annotations

import queue
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from qil_deploy.errors import TargetError

_PROGRESS = "progress: "
_KEPT_LINES = 3

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Command:
    """How to start a program: its name and arguments, and the whole environment."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]


def run_watched(
    command: Command, output: Path, timeout: float, progress: Progress | None = None
) -> tuple[int | None, list[str]]:
    """Run a command until it ends or is silent for too long.

    Args:
        command: with all of its arguments.
        output: where its standard output goes.
        timeout: seconds without a line on its standard error after which it is killed.
        progress: called with each line there that tells progress.

    Returns:
        The exit code (None if it was killed) and the last lines that are not progress.

    Raises:
        TargetError: it cannot be started.
    """
    last_words: deque[str] = deque(maxlen=_KEPT_LINES)
    with output.open("wb") as stream:
        try:
            process = subprocess.Popen(  # noqa: S603 - our own script, started without a shell
                command.arguments,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.PIPE,
                env=dict(command.environment),
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise TargetError(f"cannot start {command.arguments[0]}: {error.strerror or error}.") from error
        with process:
            try:
                for line in _lines(process.stderr, timeout):
                    if not line.startswith(_PROGRESS):
                        last_words.append(line)
                    elif progress is not None:
                        progress(line.removeprefix(_PROGRESS))
                return process.wait(timeout), list(last_words)
            except (TimeoutError, subprocess.TimeoutExpired):
                return None, list(last_words)
            finally:
                process.kill()


def _lines(stream: IO[str] | None, timeout: float) -> Iterator[str]:
    """Yield the lines of a pipe.

    Raises:
        TimeoutError: none came for `timeout` seconds.
    """
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        for line in stream or ():
            lines.put(line.strip())
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=timeout)
        except queue.Empty as error:
            raise TimeoutError from error
        if line is None:
            return
        if line:
            yield line


def quoted(lines: Sequence[str]) -> str:
    """Return the last words of a process as the end of a sentence, or nothing."""
    return f" Its last words: {' / '.join(lines)}" if lines else ""
