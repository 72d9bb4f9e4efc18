"""Output of commands: text as text, one line each, none too long; and a message while modules load."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.padding import Padding
from rich.text import Text

from qil_deploy.slow_imports import loading
from qil_deploy.terminal.console import Console, line, print_error
from qil_deploy.terminal.progress import Progress
from qil_deploy.untrusted_text import LINE_LENGTH, one_line

HOSTILE = "[red]:bug:[/nothing]\x1b[2J\x07\x9b31m\r\nExact\u202e"
ESCAPED = r"[red]:bug:[/nothing]\x1b[2J\x07\x9b31m\r\nExact\u202e"


class Screen(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def printed(print_to: Callable[[Console], object]) -> str:
    file = io.StringIO()
    print_to(Console(file=file, width=200))
    return file.getvalue()


def test_a_string_is_one_line_of_text() -> None:
    assert printed(lambda console: console.print(HOSTILE)) == f"{ESCAPED}\n"
    assert printed(lambda console: console.print(HOSTILE, style="bold", soft_wrap=True)) == f"{ESCAPED}\n"
    assert printed(lambda console: console.print(line((HOSTILE, "bold"), HOSTILE))) == f"{ESCAPED * 2}\n"


def test_whoever_renders_it_no_terminal_obeys() -> None:
    """Lines of a Text stay lines, as drawings require."""
    text = Text("a\x1b[2J\nb\x9b")
    assert printed(lambda console: console.print(text)).split() == [r"a\x1b[2J", r"b\x9b"]
    assert printed(lambda console: console.print(Padding(text, 0))).split() == [r"a\x1b[2J", r"b\x9b"]
    assert r"\x1b[2J" in printed(lambda console: console.rule("a \x1b[2J"))


@given(st.text(st.characters(exclude_categories=()), max_size=50))
def test_any_text_is_printed_as_characters(text: str) -> None:
    assert printed(lambda console: console.print(text, soft_wrap=True)).removesuffix("\n").isprintable()


def test_what_colours_a_terminal_is_still_written() -> None:
    file = io.StringIO()
    Console(file=file, force_terminal=True, color_system="standard").print("\x1b[2J", style="red")
    assert file.getvalue() == "\x1b[31m\\x1b[2J\x1b[0m\n"


def test_lines_and_errors_are_cut_in_the_middle(capsys: pytest.CaptureFixture[str]) -> None:
    sentence = f"the name {'a' * 300_000} is too long; give another."
    assert len(printed(lambda console: console.print(sentence, soft_wrap=True))) == LINE_LENGTH + 1
    print_error(sentence)
    error = capsys.readouterr().err
    assert len(error) <= LINE_LENGTH + len("Error: \n")
    assert error.startswith("Error: the name aaa")
    assert error.endswith("aaa is too long; give another.\n")
    assert f"({len(sentence):,} characters)" in error


@given(st.text(st.sampled_from("a\x1b\u202e\U0010ffff")), st.integers(60, 200))
def test_no_line_is_longer_than_it_may_be_however_much_is_escaped(text: str, length: int) -> None:
    shown = one_line(text * 5, length)
    assert len(shown) <= length
    assert shown.isprintable()


def test_descriptions_of_what_goes_on_are_text() -> None:
    """Rich treats those of progress bars and spinners as markup, and fails if it is invalid."""
    screen = Screen()
    with Console(file=screen, width=200, force_terminal=True, color_system=None).status(HOSTILE) as status:
        status.update(HOSTILE * 2)
    with Progress(console=Console(file=screen, width=200, force_terminal=True, color_system=None)) as progress:
        progress.add_task(HOSTILE * 2, total=1)
    text = screen.getvalue()
    assert text.count(ESCAPED * 2) >= 2
    assert "Exact\u202e" not in text
    assert "\x1b[2J" not in text


def test_a_word_while_modules_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with loading("PyTorch"):
        assert screen.getvalue() == "loading PyTorch ..."
    assert screen.getvalue() == "loading PyTorch ...\r\x1b[K"


@pytest.mark.parametrize("stream", [io.StringIO(), None])
def test_no_word_where_nobody_reads_it(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO | None) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with loading():
        pass
    assert stream is None or stream.getvalue() == ""


def test_no_word_on_a_terminal_that_cannot_erase_it(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "dumb")
    with loading():
        pass
    assert screen.getvalue() == ""
