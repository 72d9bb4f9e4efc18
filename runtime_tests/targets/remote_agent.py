"""The agent on a remote device: receives a model and its files, runs it, and leaves nothing behind.

Sent as text, ahead of everything else, to the device's Python (3.10 or newer); needs nothing but that. On its standard
input follow a line of JSON, `{"modules": [NAME], "files": [[NAME, BYTES]], "arguments": [ARGUMENT], "environment":
{NAME: VALUE}}`, and the files one after the other. They go to a new folder; `python ARGUMENTS` runs there; then a line
`REPORT BYTES` and its output go to the standard output. When the standard input ends, the caller is gone: the
run is ended, the folder removed.

Exit codes: those of what was run; 3 with a line `refused: SENTENCE` where it could not be.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

REPORT = "qil_deploy report:"
REFUSED = "refused: "
PREFIX = "qil_deploy-"
FOLDER = "folder: "
ANDROID = "/data/local/tmp"
CHUNK = 1 << 18


class RefusedError(Exception):
    """Reason why nothing can run here, in a sentence."""


def say(what: str) -> None:
    """Report progress to the waiting process."""
    sys.stderr.write(f"progress: {what}\n")
    sys.stderr.flush()


def check_modules(names: list[str]) -> None:
    """Raise unless this Python has the required modules."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise RefusedError(
            f"its Python {sys.version.split()[0]} ({sys.executable}) has no {' and no '.join(missing)}; install there: "
            f"{sys.executable} -m pip install {' '.join(missing)}, or name another Python with --device-python."
        )


def parent_folder() -> str:
    """Return the folder for temporary files; Android's is not known to Python."""
    try:
        return tempfile.gettempdir()
    except OSError:
        return ANDROID


def receive(stream: BinaryIO, folder: Path, files: list[tuple[str, int]]) -> None:
    """Write the files as they arrive, one after another."""
    for name, size in files:
        left = size
        try:
            with (folder / name).open("wb") as file:
                while left > 0:
                    chunk = stream.read(min(left, CHUNK))
                    if not chunk:
                        raise RefusedError(f"{name} has not arrived as a whole.")
                    file.write(chunk)
                    left -= len(chunk)
                    say(f"received {(size - left) / 1e6:.1f} of {size / 1e6:.1f} MB of {name}")
        except OSError as error:
            raise RefusedError(
                f"it cannot store {name}, of {size:,} bytes, in {folder}: {error.strerror or error}."
            ) from error


def run(folder: Path, arguments: list[str], environment: dict[str, str]) -> int:
    """Run Python in a folder until it ends or nobody waits for it; pass on its output."""
    output = folder / "output"
    with output.open("wb") as stream:
        process = subprocess.Popen(  # noqa: S603 - the script that was sent, started without a shell
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            cwd=folder,
            # onnxruntime leaves a file of its own among temporary ones
            env={**os.environ, **environment, "TMPDIR": str(folder)},
        )
    threading.Thread(target=end_with_input, args=(process,), daemon=True).start()
    try:
        code = process.wait()
    finally:
        process.kill()
    if code < 0:
        raise RefusedError(f"the run was ended by signal {-code} ({signal_name(-code)}).")
    content = output.read_bytes()
    sys.stdout.buffer.write(f"\n{REPORT} {len(content)}\n".encode() + content)
    sys.stdout.flush()
    return code


def end_with_input(process: subprocess.Popen[Any]) -> None:
    """End a process when the standard input does; not through its buffer, whose lock would outlive this program."""
    while os.read(0, CHUNK):
        pass
    process.kill()


def signal_name(number: int) -> str:
    """Return a signal's name, if it has one."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def end(number: int, _: object) -> None:
    """End this program in an orderly way."""
    raise SystemExit(128 + number)


def main() -> int:
    """Do the job read from the standard input; return the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    stream = sys.stdin.buffer
    try:
        order = json.loads(stream.readline() or "{}")
        check_modules(order["modules"])
        with tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent_folder()) as folder:
            say(f"{FOLDER}{folder}")
            receive(stream, Path(folder), order["files"])
            return run(Path(folder), order["arguments"], order["environment"])
    except RefusedError as error:
        sentence = str(error)
    except OSError as error:
        sentence = f"it cannot work in {parent_folder()}: {error.strerror or error}."
    except (ValueError, KeyError):
        sentence = "what was sent has not arrived as a whole."
    sys.stderr.write(f"{REFUSED}{sentence}\n")
    return 3


if __name__ == "__main__":
    sys.exit(main())
