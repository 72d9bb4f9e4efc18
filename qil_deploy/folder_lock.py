"""One writer per folder: a lock file that names the writer, and is released when its process ends."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from .errors import OutputError
from .file_locks import LockedFile, open_locked
from .untrusted_text import excerpt

LOCK_NAME = ".lock"


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder until the block ends, taking over the lock of a process that was killed.

    Raises:
        OutputError: another process holds it, or it cannot be written.
    """
    path = folder / LOCK_NAME
    try:
        held = open_locked(path, create=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}. Choose another folder.") from error
    if held is None:
        raise OutputError(
            f"{folder} is being written by {_holder(path)}; wait until it has ended, stop it, or choose another --out."
        )
    with held:
        try:
            _write_holder(held)
            yield
        finally:
            path.unlink(missing_ok=True)


def _write_holder(held: LockedFile) -> None:
    if held.descriptor is not None:
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        os.ftruncate(held.descriptor, 0)
        os.write(held.descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode())


def _holder(path: Path) -> str:
    """Return the holder that a lock file names; it may be about to write that."""
    try:
        with path.open("rb") as stream:
            text = stream.read(500).decode("utf-8", "replace").strip()
    except OSError:
        text = ""
    return excerpt(text) if text else "another process"
