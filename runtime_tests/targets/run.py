"""Start `device_runner.py` on a target, wait as long as it shows progress, and read its report."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from qil_deploy.errors import ConfigError, DataError, TargetError
from qil_deploy.reports import read_report

from .catalogue import Emulator, Target, emulator_python, target_state
from .report import DeviceReport

RUNNER = Path(__file__).parents[1] / "device_runner.py"
DEFAULT_TIMEOUT = 300.0
_PROGRESS = "progress: "
_KEPT_LINES = 3

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Command:
    """How to start Python on a target: arguments before the script, and the whole environment."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run a model on a target.

    Attributes:
        levels: graph-optimization levels.
        threads, batch: threads of ONNX Runtime and images per run.
        repeats: runs to time. Under an emulator times mean nothing.
        timeout: seconds without a sign of progress after which it is given up.
    """

    levels: tuple[str, ...] = ("all",)
    threads: int = 1
    batch: int = 1
    repeats: int = 0
    timeout: float = DEFAULT_TIMEOUT


def run_on_target(
    target: Target, model: Path, data: Path, options: RunOptions, progress: Progress | None = None
) -> DeviceReport:
    """Run a model on a target.

    Args:
        target: where.
        model: the ONNX file.
        data: golden vectors (.npz), or uint8 images (.npy).
        options: how.
        progress: called with each sign of progress.

    Raises:
        ConfigError: the timeout is not positive.
        TargetError: the target is not set up, fails, or stops answering.
    """
    timeout = options.timeout
    if not timeout > 0:
        raise ConfigError(f"the timeout is {timeout:g} seconds; it must be positive.")
    reason = target_state(target)
    if reason is not None:
        raise TargetError(f"target {target.name} cannot run: {reason}")
    command = python_command(target)
    arguments = [*command.arguments, str(RUNNER), str(model.absolute()), str(data.absolute())]
    arguments += ["--levels", ",".join(options.levels), "--threads", str(options.threads)]
    arguments += ["--batch", str(options.batch), "--repeats", str(options.repeats)]
    if target.cpu is not None:
        arguments += ["--cpu", f"{target.cpu} (qemu)"]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "report.json"
        code, last_words = run_watched(
            Command(arguments=tuple(arguments), environment=command.environment), output, timeout, progress
        )
        if code is None:
            raise TargetError(
                f"target {target.name} has not answered for {timeout:g} seconds and was stopped; "
                f"give it longer with --timeout, or fewer images.{_quoted(last_words)}"
            )
        if code not in (0, 1):
            raise TargetError(f"target {target.name} failed with exit code {code}.{_quoted(last_words)}")
        try:
            return read_report(output, DeviceReport)
        except DataError as error:
            raise TargetError(f"target {target.name} brought back no report: {error}{_quoted(last_words)}") from error


def python_command(target: Target) -> Command:
    """Return how to start Python on a target that is set up."""
    if target.emulator is None:
        return Command(arguments=(sys.executable, "-P"), environment=dict(os.environ))
    return emulated_python(target.emulator, str(target.cpu), target.emulator.folder, emulator_python(target.emulator))


def emulated_python(emulator: Emulator, cpu: str, folder: Path, python: Path) -> Command:
    """Return how to start a Python in an emulator, with the packages of its folder and no others."""
    arguments = [str(folder / emulator.qemu), "-cpu", cpu]
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONPATH"] = str(folder / "packages")
    if emulator.system is not None:
        arguments += ["-L", str(folder / "system")]
        environment["PYTHONHOME"] = str(folder / "system" / "usr")
    return Command(arguments=(*arguments, str(python), "-S", "-P"), environment=environment)


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


def _quoted(lines: Sequence[str]) -> str:
    return f" Its last words: {' / '.join(lines)}" if lines else ""
