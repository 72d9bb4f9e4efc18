"""A message on the terminal while modules are imported, which takes seconds if PyTorch is among them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading(what: str = "") -> Iterator[None]:
    """Show `loading WHAT ...` on the standard error stream while the body imports; nothing if that is no terminal.

    Imports nothing slow itself: it runs first.
    """
    shown = _is_terminal()
    try:
        if shown:
            sys.stderr.write(f"loading {what} ..." if what else "loading ...")
            sys.stderr.flush()
        yield
    finally:
        if shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _is_terminal() -> bool:
    """Return whether a line of the standard error stream can be written and erased again."""
    try:
        return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # there is no such stream, or it is closed
        return False
