"""Child processes of a process."""

from __future__ import annotations

import psutil


def browser_processes(parent: int) -> list[psutil.Process]:
    """Return the browser, and its driver, among the children of a process."""
    found = psutil.Process(parent).children(recursive=True)
    started = any("--remote-debugging-pipe" in line for line in map(_command_line, found))
    return found if started else []


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return list(map(str, process.cmdline()))
    except psutil.Error:  # it ended meanwhile
        return []
