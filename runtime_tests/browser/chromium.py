"""Chromium without a window: found, started with a profile of its own, and ended with everything that it started."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qil_deploy.errors import TargetError

VARIABLE: Final = "QIL_DEPLOY_CHROMIUM"
NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
_FLAGS = (
    "--headless=new",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-background-timer-throttling",
    "--disable-breakpad",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-gpu",
    "--disable-sync",
    "--metrics-recording-only",
    "--mute-audio",
)
_LIFELINE = Path(__file__).with_name("lifeline.py")
_GRACE = 5.0
_LOOK = 0.05
_LAST_WORDS = 300


@dataclass(frozen=True, kw_only=True)
class Browser:
    """A browser that runs."""

    process: subprocess.Popen[bytes]
    log: Path

    def ended(self) -> str | None:
        """Return how it ended, as the end of a sentence, or None as long as it runs."""
        code = self.process.poll()
        if code is None:
            return None
        words = " ".join(self.log.read_text(encoding="utf-8", errors="replace").split())[-_LAST_WORDS:]
        printable = "".join(letter for letter in words if letter.isprintable())
        return f"ended with exit code {code}. Its last words: {printable or 'none'}"


def find_chromium() -> str:
    """Return the program: the one that `QIL_DEPLOY_CHROMIUM` names, or the first of the usual names.

    Raises:
        TargetError: there is none.
    """
    named = os.environ.get(VARIABLE)
    if named:
        found = shutil.which(named)
        if found is None:
            raise TargetError(f"{VARIABLE} is {named!r}, which is no program; name Chromium or Chrome.")
        return found
    for name in NAMES:
        found = shutil.which(name)
        if found is not None:
            return found
    raise TargetError(f"there is no Chromium on the PATH; install it, or name one with {VARIABLE}.")


@contextlib.contextmanager
def browser_at(url: str) -> Iterator[Browser]:
    """Open a page for the length of a `with` block.

    It ends with the block, and with this process, however that ends. One that cannot be started has `ended`.

    Raises:
        TargetError: there is no Chromium.
    """
    program = find_chromium()
    with tempfile.TemporaryDirectory(prefix="qil-deploy-chromium-", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "log"
        command = [
            sys.executable,
            "-I",
            str(_LIFELINE),
            program,
            *_FLAGS,
            f"--user-data-dir={folder}/profile",
            *_sandbox(),
            url,
        ]
        with log.open("wb") as stream:
            process = subprocess.Popen(  # noqa: S603 - a browser at our own address, started without a shell
                command,
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=stream,
                env=os.environ | {"XDG_CONFIG_HOME": folder, "XDG_CACHE_HOME": folder},
                start_new_session=True,
            )
        try:
            yield Browser(process=process, log=log)
        finally:
            _end(process)


def _sandbox() -> list[str]:
    """Chromium refuses to run as root with its sandbox, which needs a user to change to."""
    return ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a browser and all processes of its group, politely first, so that it writes its profile to the end."""
    if sys.platform == "win32":
        process.kill()
    for send in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if sys.platform != "win32":
                os.killpg(process.pid, send)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    if process.stdin is not None:
        process.stdin.close()
    # What was killed may take a moment to go, and nobody here is told of it.
    deadline = time.monotonic() + _GRACE
    while sys.platform != "win32" and _is_there(process.pid) and time.monotonic() < deadline:
        time.sleep(_LOOK)


def _is_there(group: int) -> bool:
    """Return whether a group has processes left."""
    try:
        os.killpg(group, 0)
    except OSError:
        return False
    return True
