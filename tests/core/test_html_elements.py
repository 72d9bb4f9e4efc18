"""Pages are balanced, escape what they are given, and need nothing but themselves."""

from __future__ import annotations

from html.parser import HTMLParser

from qil_deploy.html_elements import TEXT_LENGTH, element, page, picture, table


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


def test_text_and_attributes_are_escaped() -> None:
    name = """<script>alert("1")</script> & 'more'"""
    text = page(name, element("p", name, title=name), table((name,), [(name,)], name), picture(b"png", name, name))
    found = _Texts(text)
    assert "script" not in found.tags
    assert sum(piece == name for piece in found.texts) == 8


def test_text_follows_the_element_it_stands_behind() -> None:
    found = _Texts(page("t", element("p", "a", element("b", "c"), "d", "e", element("i"), "f")))
    assert [text for text in found.texts if len(text) <= 2 and text.strip() and text != "en"] == [
        *"t",
        "a",
        "c",
        "de",
        "f",
    ]


def test_what_does_not_print_is_escaped() -> None:
    """Half a character, which no encoding has; what a terminal obeys; what turns the direction of writing."""
    hostile = "a\ud800b \x1b[2J \u202egnp.exe \x9b"
    text = page(hostile, element("p", hostile, title=hostile))
    assert text.count(r"a\ud800b \x1b[2J \u202egnp.exe \x9b") == 3
    assert text.replace("\n", "").isprintable()
    text.encode()


def test_lines_stay_lines() -> None:
    assert "<pre>a\n\tb\\r</pre>" in page("t", element("pre", "a\n\tb\r"))


def test_text_that_would_bury_the_page_is_cut() -> None:
    huge = "a" * 300_000
    assert f"<p>{'a' * TEXT_LENGTH}... (300,000 characters)</p>" in page("t", element("p", huge))
    assert huge in page("t", element("pre", huge))


def test_a_style_of_its_own_follows_the_shared_one() -> None:
    text = page("t", style="p { margin: 0 }")
    assert text.index("p { margin: 0 }") > text.index("table {")
