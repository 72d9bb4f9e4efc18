"""Wait for another process as long as it shows progress, line by line, on its standard error."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from qil_deploy.errors import TargetError
from qil_deploy.untrusted_text import excerpt

_PROGRESS = "progress: "
_KEPT_LINES = 3
_GRACE = 5.0
_LOOK = 0.5
_LONGEST_LINE = 4096
_MOST_WAITING = 10_000
_QUOTED = 500  # characters of a line: errors of the program itself come through whole

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Command:
    """Command line and environment of a program."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]

    def and_then(self, *arguments: object) -> Command:
        """Return the same command with more arguments."""
        return Command(arguments=(*self.arguments, *map(str, arguments)), environment=self.environment)


class WorkerError(Exception):
    """A worker fell silent, failed or returned nothing usable; the message follows its name."""


@dataclass(kw_only=True)
class Lifeline:
    """Standard input of a process, kept open after its content: closing it asks the process to end.

    Attributes:
        chunks: what it reads.
        cut: whether it did not end when it was asked to, and was killed.
    """

    chunks: Iterable[bytes]
    cut: bool = False


def run_worker(
    command: Command,
    output: Path,
    timeout: float,
    progress: Progress | None = None,
    line: Lifeline | None = None,
    *,
    largest_output: int | None = None,
) -> tuple[int | None, list[str]]:
    """Run a command until it ends or is silent for too long.

    Args:
        command: with all of its arguments.
        output: where its standard output goes.
        timeout: seconds without a line on its standard error after which it is killed.
        progress: called with each line there that tells progress.
        line: its standard input; without one it has none. A process with one is asked to end before it is killed, and
            is out of reach of Ctrl-C, which ends this program, and so the line.
        largest_output: bytes that it may write to its standard output; None for any number.

    Returns:
        The exit code (None if it was killed) and the last lines that are not progress.

    Raises:
        TargetError: it cannot be started.
        WorkerError: it wrote more than it may, and was killed.
    """
    last_words: deque[str] = deque(maxlen=_KEPT_LINES)

    def look() -> None:
        if largest_output is not None and output.stat().st_size > largest_output:
            raise WorkerError(f"wrote more than the {largest_output:,} bytes that a report may have here.")

    ended = threading.Event()
    with output.open("wb") as stream, _source(line, ended) as source:
        try:
            process = subprocess.Popen(  # noqa: S603 - our own script, started without a shell
                command.arguments,
                stdin=source,
                stdout=stream,
                stderr=subprocess.PIPE,
                env=dict(command.environment),
                text=True,
                errors="replace",
                start_new_session=line is not None,
            )
        except OSError as error:
            ended.set()
            raise TargetError(f"cannot start {command.arguments[0]}: {error.strerror or error}.") from error
    with process:
        try:
            for words in _lines(process.stderr, timeout, look):
                if not words.startswith(_PROGRESS):
                    last_words.append(words)
                elif progress is not None:
                    progress(words.removeprefix(_PROGRESS))
            code = process.wait(timeout)
            look()
            return code, list(last_words)
        except (TimeoutError, subprocess.TimeoutExpired):
            return None, list(last_words)
        finally:
            ended.set()
            _end(process, line)


@contextmanager
def _source(line: Lifeline | None, ended: threading.Event) -> Iterator[int]:
    """Give the standard input of a process: nothing, or a pipe that a thread fills and closes when the event is set."""
    if line is None:
        yield subprocess.DEVNULL
        return
    read_end, write_end = os.pipe()

    def write() -> None:
        with suppress(OSError), open(write_end, "wb", buffering=0) as pipe:  # noqa: PTH123 - a descriptor, not a path
            for chunk in line.chunks:
                rest = memoryview(chunk)
                while rest and not ended.is_set():
                    rest = rest[pipe.write(rest) :]
            ended.wait()

    threading.Thread(target=write, daemon=True).start()
    try:
        yield read_end
    finally:
        os.close(read_end)


def _end(process: subprocess.Popen[str], line: Lifeline | None) -> None:
    """Kill a process; one with a lifeline gets time to end by itself, and is then killed with all its children."""
    if line is None:
        process.kill()
        return
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        line.cut = True
        os.killpg(process.pid, signal.SIGKILL)


def _lines(stream: IO[str] | None, timeout: float, look: Callable[[], None]) -> Iterator[str]:
    """Yield the lines of a pipe, and call `look` now and then.

    Overlong lines are split; if more of them wait than can be told, some are left out.

    Raises:
        TimeoutError: none came for `timeout` seconds.
    """
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        while stream is not None and (line := stream.readline(_LONGEST_LINE)):
            if lines.qsize() < _MOST_WAITING:
                lines.put("".join(letter if letter.isprintable() else " " for letter in line).strip())
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    last = time.monotonic()
    while True:
        look()
        try:
            line = lines.get(timeout=min(_LOOK, timeout))
        except queue.Empty as error:
            if time.monotonic() - last >= timeout:
                raise TimeoutError from error
            continue
        if line is None:
            return
        if line:
            last = time.monotonic()
            yield line


def quoted(lines: Sequence[str]) -> str:
    """Return the last line of a process's errors as the end of a sentence, or nothing."""
    return f" Its last words: {' / '.join(excerpt(line, _QUOTED) for line in lines)}" if lines else ""
