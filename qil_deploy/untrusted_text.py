"""Text that comes from a file, made fit to be shown: no terminal obeys it, and no message grows with it."""

from __future__ import annotations

from typing import Final

EXCERPT_LENGTH: Final = 120


def printable(text: str) -> str:
    """Return `text` with every character that does not print as itself written as Python escapes it.

    Newlines, escape sequences, characters that reverse the direction of writing and lone surrogates are among them.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def excerpt(value: object, length: int = EXCERPT_LENGTH) -> str:
    """Return the beginning of `value` as text, printable, and how long the whole is where it is cut.

    >>> excerpt("a" * 200, length=4)
    'aaaa... (200 characters)'
    """
    text = value if isinstance(value, str) else repr(value)
    if len(text) <= length:
        return printable(text)
    return f"{printable(text[:length])}... ({len(text):,} characters)"
