"""Ctrl-C: quiet at every moment of a command; in the middle of long work, finished results are kept.

Python raises KeyboardInterrupt wherever it happens to be. Nothing expects it while a module is loading: some libraries
swallow it, or a traceback through unfamiliar files is shown. So a command that is interrupted while it loads a module
ends at once, as if it had been killed; files are written whole or not at all (`files`), so nothing half done is left.
At all other moments KeyboardInterrupt is raised as usual.

If SIGINT was ignored when the command started, it stays ignored, as in every Python program: shells do that for
background jobs, which Ctrl-C is not meant for.

Imports nothing slow: a command runs this first.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final, NoReturn

INTERRUPTED: Final = 130  # the exit code that shells expect after Ctrl-C
_LOADER: Final = "<frozen importlib"


def handle_interrupts() -> None:
    """End quietly, with exit code `INTERRUPTED`, if Ctrl-C is pressed from here on."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return  # ignored, or somebody else's
    # Called last, since it is registered first: the interpreter takes its modules apart after it.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGINT, _interrupt)
    report, report_lost = sys.excepthook, sys.unraisablehook

    def hook(kind: type[BaseException], *rest: object) -> None:
        if issubclass(kind, KeyboardInterrupt):
            _end_now()
        report(kind, *rest)  # type: ignore[arg-type] # passed on as they came

    def hook_lost(lost: sys.UnraisableHookArgs) -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):  # in a callback or a destructor, which cannot raise
            _end_now()
        report_lost(lost)

    sys.excepthook, sys.unraisablehook = hook, hook_lost


def end_at_interrupts() -> None:
    """End at once if Ctrl-C is pressed from here on, when all work is done."""
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, lambda *_: _end_now())


def _interrupt(_: int, frame: FrameType | None) -> None:
    """Handle Ctrl-C."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(_LOADER):
            _end_now()
        frame = frame.f_back
    raise KeyboardInterrupt


def _end_now() -> NoReturn:
    """End without unwinding; printed output is kept, and a cursor hidden by a progress bar is shown again."""
    with contextlib.suppress(Exception):
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            sys.stderr.write("\r\x1b[K\x1b[?25h")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(INTERRUPTED)


@contextlib.contextmanager
def noticing_interrupts() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed; pressed again, it raises KeyboardInterrupt.

    For work that polls the function and ends with what it has.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        yield lambda: False
        return
    pressed = False

    def note(*_: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
