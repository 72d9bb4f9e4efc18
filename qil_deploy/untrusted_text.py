"""Text from files, made safe to display: no terminal obeys it, and no message grows with it."""

from __future__ import annotations

from typing import Final

EXCERPT_LENGTH: Final = 120
LINE_LENGTH: Final = 1000


def printable(text: str) -> str:
    """Return `text` with every unprintable character escaped as in Python.

    Newlines, escape sequences, characters that reverse the direction of writing and lone surrogates are among them.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def excerpt(value: object, length: int = EXCERPT_LENGTH) -> str:
    """Return the beginning of `value` as text, printable, and the total length if it is cut.

    >>> excerpt("a" * 200, length=4)
    'aaaa... (200 characters)'
    """
    text = value if isinstance(value, str) else repr(value)
    shown = printable(text[:length])
    if len(text) <= length and len(shown) <= length:
        return shown
    return f"{shown[:length]}... ({len(text):,} characters)"


def one_line(text: str, length: int = LINE_LENGTH) -> str:
    """Return `text`, printable and at most `length` characters long; the middle of longer text is left out.

    A sentence begins with what went wrong and ends with what to do.

    >>> one_line("the name " + "a" * 200 + " is too long.", length=60)
    'the name aaaaaaaaaaaa ... (222 characters) ...  is too long.'
    """
    if len(text) <= length:
        shown = printable(text)
        if len(shown) <= length:
            return shown
    middle = f" ... ({len(text):,} characters) ... "
    end = (length - len(middle)) * 2 // 5
    beginning = printable(text[:length])[: length - len(middle) - end]
    return f"{beginning}{middle}{printable(text[-length:])[-end:]}"
