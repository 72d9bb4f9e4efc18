"""Locks on files, which the system releases when the process that holds them ends, however it ends.

A lock belongs to the open file. A forked child (a worker that decodes images, for instance) shares it and would keep
the lock alive, so it closes its copy at once. Where the file system has no locks, and on Windows, files count as
unlocked and nobody is kept out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import weakref
from pathlib import Path
from typing import Self

if sys.platform != "win32":
    import fcntl

_WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


class LockedFile:
    """A file that this process holds open and, if the system supports it, locked.

    Attributes:
        descriptor: of the open file; None once it is closed.
        locked: whether nobody else can hold it.
    """

    def __init__(self, descriptor: int, *, locked: bool) -> None:
        self.descriptor: int | None = descriptor
        self.locked = locked
        _held.add(self)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file, and with it the lock."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


_held: weakref.WeakSet[LockedFile] = weakref.WeakSet()


def open_locked(path: Path, *, create: bool = False) -> LockedFile | None:
    """Open a file and lock it; None if another process holds it.

    Args:
        path: a regular file, no symbolic link.
        create: whether to create a missing file.

    Raises:
        OSError: it cannot be opened or, without `create`, is missing.
    """
    while True:
        flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | (os.O_CREAT if create else 0)
        descriptor = os.open(path, flags, 0o666)
        locked = _try_lock(descriptor)
        if locked is None:
            os.close(descriptor)
            return None
        file = LockedFile(descriptor, locked=locked)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                return file
        file.close()  # removed, or replaced, by whoever held it before


def _try_lock(descriptor: int) -> bool | None:
    """Lock an open file: True; False if locks are not supported; None if another process holds it."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        return False
    return True


def _close_in_child() -> None:
    for file in list(_held):
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
