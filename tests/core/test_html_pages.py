"""Pages escape their content, and are self-contained."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from qil_deploy.pages import TEXT_LENGTH, page_environment

PAGE = """
{% extends "page.html.jinja" %}
{% from "macros.html.jinja" import note, picture, row, table, words_head %}
{% block title %}{{ text }}{% endblock %}
{% block style %}p { margin: 0 }{% endblock %}
{% block content %}
<p title="{{ text }}">{{ text }}</p><pre>{{ text | lines }}</pre>{{ note(text) }}
{% call table(text, [text, words_head(text)]) %}{{ row([text, text]) }}{% endcall %}
{{ picture(png, text, text) }}
{% endblock %}
"""
TIMES = 12  # that the text is shown


def render(folder: Path, text: str) -> str:
    (folder / "test.html.jinja").write_text(PAGE)
    return page_environment(folder).get_template("test.html.jinja").render(text=text, png=b"png")


class _Texts(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.texts += [value or "" for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_text_and_attributes_are_escaped(tmp_path: Path) -> None:
    name = """<script>alert("1")</script> & 'more'"""
    found = _Texts(render(tmp_path, name))
    assert "script" not in found.tags
    assert sum(piece == name for piece in found.texts) == TIMES


def test_what_does_not_print_is_escaped(tmp_path: Path) -> None:
    """Half a surrogate pair, which no encoding has; a control sequence; a change of the direction of writing."""
    text = render(tmp_path, "a\ud800b \x1b[2J \u202egnp.exe \x9b")
    assert text.count(r"a\ud800b \x1b[2J \u202egnp.exe \x9b") == TIMES
    assert text.replace("\n", "").isprintable()
    text.encode()


def test_lines_stay_lines(tmp_path: Path) -> None:
    text = render(tmp_path, "a\n\tb\r")
    assert "<pre>a\n\tb\\r</pre>" in text
    assert r"a\n\tb\r</p>" in text


def test_text_that_would_bury_the_page_is_cut(tmp_path: Path) -> None:
    huge = "a" * 300_000
    text = render(tmp_path, huge)
    assert text.count(f"{'a' * TEXT_LENGTH}... (300,000 characters)") == TIMES - 1
    assert f"<pre>{huge}</pre>" in text


def test_a_style_of_its_own_follows_the_shared_one(tmp_path: Path) -> None:
    text = render(tmp_path, "t")
    assert text.index("p { margin: 0 }") > text.index("table {")


def test_a_name_that_no_one_gave_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "test.html.jinja").write_text("{{ absent }}")
    with pytest.raises(UndefinedError, match="absent"):
        page_environment(tmp_path).get_template("test.html.jinja").render()
