"""Waits that do not depend on the load of the machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class Clock:
    """Replaces the module `time` in measurements of silence: its seconds pass only while a condition holds.

    A slow machine is not taken for a silent program when the condition is that the program has fallen silent.
    """

    def __init__(self, runs: Callable[[], bool]) -> None:
        self._runs = runs
        self._passed = 0.0
        self._looked = time.monotonic()

    def monotonic(self) -> float:
        """Return how many seconds the condition held."""
        now = time.monotonic()
        if self._runs():
            self._passed += now - self._looked
        self._looked = now
        return self._passed


def wait_for(find: Callable[[], T | None], seconds: float = 120) -> T:
    """Return the result of `find` once there is one; fail if that takes far too long."""
    end = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < end, f"it has not happened in {seconds:g} seconds"
        time.sleep(0.02)
    return found


def lives(note: Path) -> bool:
    """Tell whether the process whose number is in a file exists."""
    number = note.read_text() if note.is_file() else ""
    if not number:
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    return True
