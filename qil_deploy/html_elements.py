"""HTML as a tree of elements: text is escaped, tags are balanced, and the page needs nothing but itself."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Final
from xml.etree.ElementTree import Element, tostring

from .untrusted_text import excerpt, printable

Child = Element | str
TEXT_LENGTH: Final = 10_000
"""Of one piece of text, in characters: more than what processors can do fills, and less than what buries a page."""
_WITH_LINES: Final = ("pre", "style")

STYLE = """
:root { color-scheme: light dark; --line: #d5d8dc; --soft: #f3f4f6; --faint: #5b6470; }
@media (prefers-color-scheme: dark) { :root { --line: #3a4048; --soft: #22272d; --faint: #a0a9b4; } }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 80rem; margin: 0 auto; padding: 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
p.note, figcaption { color: var(--faint); font-size: .875rem; } figcaption { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .875rem; }
th, td { padding: .25rem .5rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th[scope=row], thead th:first-child { text-align: left; position: sticky; left: 0; background: Canvas; }
thead th, thead th:first-child { background: var(--soft); vertical-align: bottom; white-space: normal; }
figure { margin: 0; } img { max-width: 100%; height: auto; background: white; border-radius: 4px; }
svg { max-width: 100%; height: auto; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 1rem; }
pre { background: var(--soft); padding: 1rem; overflow-x: auto; font-size: .8125rem; }
summary { cursor: pointer; font-weight: 600; margin: 1rem 0; }
@media print {
  body { max-width: none; padding: 0; } .scroll { overflow: visible; } pre { white-space: pre-wrap; }
  table { font-size: .6875rem; } th, td { white-space: normal; padding: .125rem .25rem; }
  thead th:first-child, th[scope=row] { position: static; overflow-wrap: anywhere; }
  figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; }
}
"""


def element(tag: str, *children: Child, **attributes: str) -> Element:
    """Return an element; attributes as `class_` for `class`, `aria_label` for `aria-label`.

    Whatever text and attributes hold is shown as text: markup is escaped when the page is written, and here characters
    that do not print, those that turn the direction of writing among them. Text is cut after `TEXT_LENGTH` characters.
    In a `pre`, lines stay lines, and text is whole.
    """
    shown = {name.rstrip("_").replace("_", "-"): printable(value) for name, value in attributes.items()}
    result = Element(tag, shown)
    for child in children:
        if isinstance(child, Element):
            result.append(child)
            continue
        text = _printable_lines(child) if tag in _WITH_LINES else excerpt(child, TEXT_LENGTH)
        if len(result):
            result[-1].tail = (result[-1].tail or "") + text
        else:
            result.text = (result.text or "") + text
    return result


def _printable_lines(text: str) -> str:
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def table(heads: Sequence[Child], rows: Iterable[Sequence[Child]], label: str) -> Element:
    """Return a table that scrolls sideways where the screen is too narrow; the first cell of a row names it.

    Args:
        heads: of the columns: text, or a finished `th` element.
        rows: text, or a finished `td` element.
        label: what the table shows, for screen readers.
    """
    head = element("thead", element("tr", *(_head(each) for each in heads)))
    body = element("tbody", *(_row(row) for row in rows))
    return element("div", element("table", head, body), class_="scroll", role="region", tabindex="0", aria_label=label)


def _head(each: Child) -> Element:
    return each if isinstance(each, Element) else element("th", each, scope="col")


def _row(cells: Sequence[Child]) -> Element:
    first, *rest = cells
    return element(
        "tr",
        element("th", first, scope="row"),
        *(cell if isinstance(cell, Element) else element("td", cell) for cell in rest),
    )


def picture(png: bytes, text: str, caption: str | None = None) -> Element:
    """Return a figure with an embedded picture; `text` says what it shows to those who cannot see it."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    image = element("img", src=source, alt=text)
    return element("figure", *([element("figcaption", caption)] if caption else []), image)


def page(title: str, *children: Child, style: str = "") -> str:
    """Return a whole page.

    Args:
        title: of the page.
        children: what it shows.
        style: rules of its own, after those that all pages share.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", STYLE + style),
    )
    document = element("html", head, element("body", element("main", *children)), lang="en")
    return f"<!DOCTYPE html>\n{tostring(document, encoding='unicode', method='html')}\n"
