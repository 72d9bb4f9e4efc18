"""Wait for a page's result as long as the page shows progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qil_deploy.errors import TargetError

from .server import PageServer

Progress = Callable[[str], None]
_LOOK = 0.2


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Time limits of waiting, and the messages when they expire.

    Attributes:
        name: of the target, as in messages.
        timeout: seconds without a sign of the page.
        silence: the message, after the name, if there was none for so long.
        retries: whether a page that fails may try again.
        ended: returns how the browser ended, or None while it runs.
        stopped: whether the user wants to wait no longer.
    """

    name: str
    timeout: float
    silence: str
    retries: bool = False
    ended: Callable[[], str | None] = lambda: None
    stopped: Callable[[], bool] = lambda: False


def wait_for_result(server: PageServer, patience: Patience, progress: Progress | None) -> Any:  # noqa: ANN401 - what the server's `accept` returns
    """Return the result that the page sends.

    Raises:
        TargetError: it fails, shows no progress for too long, or the browser ends.
        KeyboardInterrupt: `patience.stopped` says so.
    """
    last = time.monotonic()
    failure = ""
    while True:
        event = server.next_event(_LOOK)
        if patience.stopped():
            raise KeyboardInterrupt
        if event is None:
            ended = patience.ended()
            if ended is not None:
                raise TargetError(f"{patience.name} failed: the browser {ended}")
            if time.monotonic() - last > patience.timeout:
                raise TargetError(f"{patience.name} {patience.silence}{failure}")
            continue
        last = time.monotonic()
        if event.kind == "result":
            return event.result
        if event.kind == "failure":
            failure = f" Its last words: {event.text}"
            if not patience.retries:
                raise TargetError(f"{patience.name} failed.{failure}")
        if event.kind in {"progress", "failure"} and progress is not None:
            progress(event.text)
