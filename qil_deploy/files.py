"""Write files whole or not at all.

A file is written beside its destination under a temporary name and renamed over it, so that a reader (or the
next start after a crash) sees the old content or the new, never a half.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import OutputError


def ensure_writable(path: Path) -> None:
    """Raise before long work starts if `path` could not be written at its end.

    Creates the parent folder.

    Raises:
        OutputError: `path` is a folder, a device or a pipe, or its folder cannot be created or written.
    """
    try:
        if path.is_dir():
            raise OutputError(f"{path} is a folder; name a file to write.")
        # The file is renamed over what is there: that must not be /dev/null.
        if path.exists() and not path.is_file():
            raise OutputError(f"{path} is a device or a pipe, not a file; name a file to write.")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}. Choose a folder that you may write to."
        ) from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` when the block ends without an error.

    The temporary file has the suffix of `path` (some writers choose a format by it), and an error removes it. A
    symbolic link stays one: what it points to is written.

    Raises:
        OutputError: the folder cannot be written, or the disk is full.
    """
    ensure_writable(path)
    path = Path(os.path.realpath(path))
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}.") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        # mkstemp makes files private to their owner; a result is shared like any other file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write `content` to `path` as UTF-8, whole or not at all."""
    write_bytes(path, content.encode())
