"""Pages: self-contained HTML files from jinja2 templates.

A room's own templates extend `page.html.jinja`, which has the style of all pages; tables and notes come from
`macros.html.jinja`. Whatever a template shows is escaped by jinja2, and before that made printable and cut by
`untrusted_text`, so that no template can forget it.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from qil_deploy.untrusted_text import excerpt, printable

TEXT_LENGTH: Final = 10_000
"""Of one piece of text, in characters: more than what processors can do fills, and less than what buries a page."""


def page_environment(folder: Path) -> Environment:
    """Return the environment that renders a folder's templates, and those that all pages share."""
    environment = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"lines": lines, "png_source": png_source}
    return environment


def _shown(value: object) -> object:
    """Make text safe to display; numbers and finished markup already are."""
    return excerpt(value, TEXT_LENGTH) if isinstance(value, str) and not isinstance(value, Markup) else value


def lines(text: str) -> Markup:
    """Return text for a `pre`: complete, with its lines and tabs, all other characters printable."""
    return escape("\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n")))


def png_source(png: bytes) -> Markup:
    """Return the `src` of a picture embedded in the page."""
    return Markup(f"data:image/png;base64,{base64.b64encode(png).decode()}")  # noqa: S704 - base64 has no markup
