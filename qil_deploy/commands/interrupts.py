"""Ctrl-C in the middle of long work: what is done so far is kept."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

INTERRUPTED = 130  # the exit code that shells expect after Ctrl-C


@contextlib.contextmanager
def noticing_interrupts() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C was pressed; only the second time it raises KeyboardInterrupt.

    For work that asks the function now and then, and ends with what it has.
    """
    pressed = False

    def note(*_: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
