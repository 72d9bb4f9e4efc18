"""Which processes run, where the system shows them (`/proc`)."""

from __future__ import annotations

from pathlib import Path

_PROFILE = "--user-data-dir="


def command_lines() -> list[str]:
    """Return the command lines of all processes, where the system shows them."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it ended meanwhile
            continue
    return lines


def profile_of_browser(parent: int) -> str | None:
    """Return the profile of the browser that a process has started, if it has."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    for child in children.read_text().split() if children.is_file() else ():
        parts = Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace").split("\0")
        found = [part.removeprefix(_PROFILE) for part in parts if part.startswith(_PROFILE)]
        if found:
            return found[0]
    return None
