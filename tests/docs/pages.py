"""The code on a page: its blocks in order, and how to run each."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.command_line import Outcome

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_OURS = re.compile(r"^\$ python -m (qil_deploy\S*) (.*)$", re.MULTILINE)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return (language, content) of each block of Python or of commands."""
    return [(match[1], match[2]) for match in _BLOCK.finditer(page.read_text())]


def python_block(page: Path, part: str) -> str:
    """Return the one block of Python that contains `part`."""
    (source,) = (content for language, content in blocks(page) if language == "python" and part in content)
    return source


def run_python(source: str, namespace: dict[str, Any], page: Path) -> None:
    """Run a block in `namespace`."""
    exec(compile(source, page.name, "exec"), namespace)  # noqa: S102 - a page of ours


def our_commands(source: str) -> list[list[str]]:
    """Return this project's commands in a block of commands, as the words after `python -m qil_deploy`."""
    return [[*program.split(".")[1:], *shlex.split(rest, comments=True)] for program, rest in _OURS.findall(source)]


def run_page(page: Path, call: Callable[..., Outcome], *, skip: int = 0) -> tuple[dict[str, Any], list[str]]:
    """Run the blocks of a page one after another, as a reader would.

    Args:
        page: the page.
        call: runs the command line.
        skip: blocks at the beginning that are left out.

    Returns:
        What the Python blocks defined, and the names of the commands that were run.
    """
    namespace: dict[str, Any] = {}
    names = []
    for language, source in blocks(page)[skip:]:
        if language == "python":
            run_python(source, namespace, page)
            continue
        for words in our_commands(source):
            outcome = call(*words)
            assert outcome.code == 0, f"{' '.join(words)}\n{outcome.error}"
            names.append(words[0])
    return namespace, names
