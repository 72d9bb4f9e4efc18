"""Write files whole or not at all.

A file is written beside its destination under a temporary name and renamed over it, so that a reader (or the
next start after a crash) sees the old content or the new, never a half. Its writer holds the temporary file locked:
an unlocked one was left by a process that was killed, and `remove_unfinished` removes it.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from .errors import OutputError
from .file_locks import LockedFile, open_locked

_MARK = "-unfinished-"
_UNFINISHED = re.compile(rf"\..*{_MARK}[a-z0-9_]{{8}}(\.[^.]*)?", re.DOTALL)
_LONGEST_STEM = 100  # of a temporary name, which has to leave room for its mark


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


def ensure_apart(outputs: Mapping[str, Path], inputs: Mapping[str, Path]) -> None:
    """Raise if a file to be written is also read, or is to be written twice.

    Args:
        outputs: by what each is, in the words of a sentence.
        inputs: likewise.

    Raises:
        OutputError: two of them are the same file, under any names and links; both are named.
    """
    known = list(inputs.items())
    for what, path in outputs.items():
        for other, taken in known:
            if _same_file(path, taken):
                raise OutputError(f"{path} cannot be {what}: it is {other}; name another file to write.")
        known.append((what, path))


def _same_file(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)
    except OSError:  # one of them does not exist yet
        return os.path.realpath(a) == os.path.realpath(b)


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
        temporary, held = _make_temporary(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}.") from error
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
        held.close()


def _make_temporary(path: Path) -> tuple[Path, LockedFile]:
    """Make a temporary file beside `path`, and lock it."""
    prefix = f".{path.stem[:_LONGEST_STEM]}{_MARK}"
    while True:
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=path.suffix, dir=path.parent)
        os.close(handle)
        with contextlib.suppress(FileNotFoundError):
            held = open_locked(Path(name))
            if held is not None:
                return Path(name), held
        # `remove_unfinished` of another process came between, and removes it.


def remove_unfinished(folder: Path) -> list[Path]:
    """Remove the temporary files in a folder whose writers were killed, and return their paths.

    Files that somebody still writes stay, and so does everything that `atomic_path` did not name.
    """
    removed = []
    for path in sorted(folder.glob(f".*{_MARK}*")) if folder.is_dir() else ():
        if _UNFINISHED.fullmatch(path.name) is None or path.is_symlink() or not path.is_file():
            continue
        with contextlib.suppress(OSError):
            held = open_locked(path)
            if held is not None:
                with held:
                    if held.locked:
                        path.unlink()
                        removed.append(path)
    return removed


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write `content` to `path` as UTF-8, whole or not at all."""
    write_bytes(path, content.encode())
