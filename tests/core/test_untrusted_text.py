"""Text from files reaches a terminal as characters, never as commands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qil_deploy.untrusted_text import excerpt, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("conv1.weight", "conv1.weight"),
        ("größe 4", "größe 4"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\udc80", r"\udc80"),
        ("\x9b31m", r"\x9b31m"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_prints_on_one_line(text: str) -> None:
    assert printable(text).isprintable()
    assert excerpt(text).isprintable()


def test_an_excerpt_says_how_long_the_whole_is() -> None:
    assert excerpt("a" * 120) == "a" * 120
    assert excerpt("a" * 2000) == "a" * 120 + "... (2,000 characters)"
    assert excerpt([1] * 2, length=3) == "[1,... (6 characters)"
