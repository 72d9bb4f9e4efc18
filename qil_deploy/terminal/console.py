"""A console that escapes control sequences in text from files.

Names, metadata and messages come from files of strangers, and a terminal obeys escape sequences: they move its cursor,
rewrite lines that were printed before, or set its title. A newline in a name forges a line of output, and a name of
megabytes buries the rest. So a string that is printed here is one line, escaped, and at most `LINE_LENGTH` characters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.status import Status
from rich.text import Text

from qil_deploy.untrusted_text import LINE_LENGTH, one_line, printable


class Console(rich.console.Console):
    """A rich console that prints `[brackets]` and `:names:` literally, and text as `line` converts it."""

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:  # noqa: ANN401 - those of the base class
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:  # noqa: ANN401 - as in the base class
        """Print strings as one line each, and anything else that rich renders."""
        super().print(*map(_as_line, objects), **options)

    def status(self, status: RenderableType, **options: Any) -> Status:  # noqa: ANN401 - as in the base class
        """Return a status line, with a spinner before it, to be updated."""
        return _Status(_as_line(status), console=self, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render for the screen; characters that do not print are escaped, whatever their source."""
        for segment in super().render(renderable, options):
            if segment.control is None and not segment.text.replace("\n", "").isprintable():
                lines = "\n".join(map(printable, segment.text.split("\n")))
                yield Segment(lines, segment.style)
            else:
                yield segment


class _Status(Status):
    """A status whose text is not markup."""

    def update(self, status: RenderableType | None = None, **options: Any) -> None:  # noqa: ANN401 - as in the base class
        super().update(None if status is None else _as_line(status), **options)


def line(*parts: str | tuple[str, str]) -> Text:
    """Return one line of text: strings, or pairs of a string and its style; each escaped and cut as `one_line` does."""
    styled = [(part, "") if isinstance(part, str) else part for part in parts]
    return Text.assemble(*((one_line(text), style) for text, style in styled))


def print_error(sentence: str) -> None:
    """Print an error to the standard error stream: one line, at most `LINE_LENGTH` characters."""
    Console(stderr=True).print(line(("Error:", "red"), " ", sentence), soft_wrap=True)


def _as_line(value: RenderableType) -> RenderableType:
    return line(value) if isinstance(value, str) else value


__all__ = ["LINE_LENGTH", "Console", "line", "print_error"]
