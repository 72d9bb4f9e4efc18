"""Run a model on a device reached by ssh or adb.

One connection does it all: the device's Python reads `remote_agent.py` from its standard input, then everything that is
to be run, and the report comes back on the standard output. While the standard input stays open the device continues;
when it ends, for any reason, the device ends the run and removes its folder. Only a run that misses even that is ended
through a second connection.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from os import environ
from pathlib import Path

from qil_deploy.runtime_tests.device_program import OLDEST_PYTHON

from . import remote_agent
from .remote import CONNECT_SECONDS, Remote
from .worker_process import Command, Lifeline, Progress, WorkerError, quoted, run_worker

MODULES = ("numpy", "onnxruntime")
_CHUNK = 1 << 16
_GREETING = 1 << 16  # bytes that a device may print around the report
_PROCESS = "process: "
_TEMPORARY = re.compile(rf"/[\w./+-]*/{remote_agent.PREFIX}\w+")
_REPORT = re.compile(rb"^" + remote_agent.REPORT.encode() + rb" (\d{1,9})\n", re.MULTILINE)

_SSH_FAILED = 255
_NOT_STARTED = (126, 127)  # a shell's exit codes

# What ssh and adb say, and what to do about it.
_UNREACHABLE = "it cannot be reached, or the connection broke"
_SSH_TROUBLE = (
    ("Host key verification failed", "its host key is not known here, or has changed; log in once by hand and compare"),
    (
        "Permission denied",
        "it accepts none of this user's keys, and no password is asked for; see ssh-copy-id",
    ),
    ("Could not resolve hostname", "there is no host of that name"),
    ("Bad configuration option", "this machine's ssh configuration cannot be read"),
    ("", _UNREACHABLE),
)
_ADB_TROUBLE = (
    ("unauthorized", "it does not allow this machine yet; confirm on its screen"),
    ("more than one", "there is more than one device; name one as adb:SERIAL (adb devices lists them)"),
    ("no devices", "no device is connected (adb devices lists them)"),
    ("not found", "no such device is connected (adb devices lists them)"),
    ("offline", _UNREACHABLE),
)


class Device:
    """Reports of a device during a run: its process and its folder."""

    def __init__(self, progress: Progress | None) -> None:
        self.process: int | None = None
        self.folder: str | None = None
        self._progress = progress

    def hear(self, what: str) -> None:
        """Record a sign of progress."""
        if re.fullmatch(rf"{_PROCESS}[1-9]\d*", what, re.ASCII):
            self.process = int(what.removeprefix(_PROCESS))
        elif what.startswith(remote_agent.FOLDER):
            folder = what.removeprefix(remote_agent.FOLDER)
            self.folder = folder if _TEMPORARY.fullmatch(folder) and ".." not in folder else None
        elif self._progress is not None:
            self._progress(what)


def run_on_device(
    remote: Remote,
    files: Mapping[str, Path],
    arguments: Sequence[str],
    timeout: float,
    most: int,
    output: Path,
    progress: Progress | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[int | None, list[str]]:
    """Send files to a device and run its Python there.

    Args:
        remote: the device.
        files: what is sent, by the names that they have there.
        arguments: of that Python: the program, and its arguments.
        timeout: seconds without a sign of progress after which it is given up.
        most: bytes that the program may write.
        output: where its output goes.
        progress: called with each sign of progress.
        environment: variables that the program sees there, overriding the device's own.

    Returns:
        The program's exit code (None if it was given up), and the last lines that are not progress.

    Raises:
        WorkerError: the device cannot be reached, lacks what it needs, or returns nothing.
    """
    agent = Path(remote_agent.__file__).read_bytes()
    line = Lifeline(chunks=_parcel(agent, files, arguments, environment or {}))
    device = Device(progress)
    command = Command(arguments=remote.command(_script(remote, len(agent))), environment=dict(environ))
    try:
        code, last_words = run_worker(command, output, timeout, device.hear, line, largest_output=most + _GREETING)
    finally:
        if line.cut:
            _clear(remote, device)
    if code is not None:
        report = _REPORT.search(output.read_bytes())
        if report is None or code not in (0, 1):
            raise WorkerError(_trouble(remote, code, last_words))
        output.write_bytes(report.string[report.end() :][: int(report[1])])
    return code, last_words


def _script(remote: Remote, size: int) -> str:
    """Return the shell script that starts the device's Python, which reads `size` bytes of program."""
    version = ".".join(map(str, OLDEST_PYTHON))
    refusal = f"{remote_agent.REFUSED}its Python is %d.%d, and {version} is the oldest that will do."
    program = (
        f"import sys; sys.version_info >= {OLDEST_PYTHON} or sys.exit({refusal!r} % sys.version_info[:2]); "
        f"sys.path = [entry for entry in sys.path if entry]; exec(sys.stdin.buffer.read({size}))"
    )
    return f'echo "progress: {_PROCESS}$$" >&2; exec {remote.python_word} -c {shlex.quote(program)}'


def _parcel(
    agent: bytes, files: Mapping[str, Path], arguments: Sequence[str], environment: Mapping[str, str]
) -> Iterator[bytes]:
    """Yield the input of the device."""
    sizes = [(name, path.stat().st_size) for name, path in files.items()]
    order = {"modules": MODULES, "files": sizes, "arguments": arguments, "environment": environment}
    yield agent + json.dumps(order).encode() + b"\n"
    for path in files.values():
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk


def _clear(remote: Remote, device: Device) -> None:
    """Clean up a device that has not noticed that nobody waits for it, as far as it still answers."""
    orders = []
    if device.process is not None:
        orders.append(f"kill -KILL -{device.process} 2>/dev/null || kill -KILL {device.process}")
    if device.folder is not None:
        orders.append(f"rm -rf -- {shlex.quote(device.folder)}")
    if not orders:
        return
    try:
        subprocess.run(  # noqa: S603 - ssh or adb, without a shell on this side
            remote.command("; ".join(orders)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=2 * CONNECT_SECONDS,
            check=False,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired):
        return


def _trouble(remote: Remote, code: int, last_words: Sequence[str]) -> str:
    """Explain why nothing came back."""
    for words in last_words:
        if words.startswith(remote_agent.REFUSED):
            return f"failed: {words.removeprefix(remote_agent.REFUSED)}"
    if code in _NOT_STARTED:
        return f"has no Python {remote.python!r}; name another one with --device-python.{quoted(last_words)}"
    said = " ".join(last_words)
    for words, sentence in _trouble_known(remote.tool, code):
        if words in said:
            return f"failed: {sentence}.{quoted(last_words)}"
    what = "brought back no report" if code in (0, 1) else f"failed with exit code {code}"
    return f"{what}.{quoted(last_words)}"


def _trouble_known(tool: str, code: int) -> tuple[tuple[str, str], ...]:
    """Return what a tool may say when it, and not what runs on the device, ends with a code."""
    if tool == "ssh":
        return _SSH_TROUBLE if code == _SSH_FAILED else ()
    return _ADB_TROUBLE
