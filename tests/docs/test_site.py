"""The site builds without warnings, loads nothing from other servers, and its reference has every public name."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from types import FunctionType

import pytest

from qil_deploy.commands import app
from tests.docs.pages import DOCS, ROOT, our_commands

PACKAGES = {
    "qil_deploy": "qil_deploy",
    "qil_deploy.export": "export",
    "qil_deploy.training": "training",
    "qil_deploy.datasets": "datasets",
    "qil_deploy.runtime_tests": "runtime_tests",
}
_ELSEWHERE = re.compile(r"""@import|url\(\s*["']?(?:https?:)?//""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it as `make docs` does, into a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


class _Loaded(HTMLParser):
    """Collects the resources that a browser fetches for a page by itself, without links that a reader may follow."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = ("src", "srcset", "data", "poster", *(["href"] if tag in {"link", "use", "image"} else []))
        self.addresses += [value for name, value in attrs if name in names and value]


def fetched(page: str) -> list[str]:
    """Return the addresses from which a page's elements are fetched."""
    parser = _Loaded()
    parser.feed(page)
    return parser.addresses


def test_what_is_fetched_is_found() -> None:
    page = '<link href="a"><a href="b"><script src="//c/d.js"></script><img srcset="e">'
    assert fetched(page) == ["a", "//c/d.js", "e"]


def test_nothing_comes_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        text = page.read_text()
        assert not _ELSEWHERE.search(text), page
        for address in fetched(text):
            assert "//" not in address, f"{page.name}: {address}"
            if page.name != "404.html":  # its addresses begin at the root of a server
                assert (page.parent / address.partition("?")[0].partition("#")[0]).exists(), address
    for sheet in site.rglob("*.css"):
        assert not _ELSEWHERE.search(sheet.read_text()), sheet


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_has_every_public_name(site: Path, package: str) -> None:
    """Functions and classes; if a module has the name of a function, the function inside it."""
    page, module = (site / "reference" / f"{PACKAGES[package]}.html").read_text(), import_module(package)
    names = [name for name in module.__all__ if isinstance(getattr(module, name), type | FunctionType)]
    shown = [name for name in names if re.search(rf'id="{re.escape(package)}\.(?:{name}\.)?{name}"', page)]
    assert len(names) > 2
    assert shown == names


def test_commands_are_those_of_the_command_line(site: Path) -> None:
    """The table lists each command, and only options that exist; the build writes the options."""
    from typer.main import get_command

    text = (DOCS / "reference" / "commands.md").read_text()
    rows = "\n".join(f"$ {match}" for match in re.findall(r"^\| `(python -m qil_deploy[^`]*)`", text, re.MULTILINE))
    named: dict[str, set[str]] = {}
    for words in our_commands(rows.replace("[", "").replace("]", "")):
        named.setdefault(words[0], set()).update(word for word in words[1:] if word.startswith("-"))
    commands = get_command(app).commands  # type: ignore[attr-defined] # a group, since several are registered
    assert named.keys() == commands.keys()
    for name, options in named.items():
        known = {opt for each in commands[name].params for opt in (*each.opts, *each.secondary_opts)}
        assert options <= known, name
    page = (site / "reference" / "commands.html").read_text()
    assert "--device-python" in page
    assert 'id="target-setup"' in page


def test_every_decision_is_in_the_list() -> None:
    listed = re.findall(
        r"^\| \[(\d{4})\]\(\1-[\w-]+\.md\)", (DOCS / "decisions" / "README.md").read_text(), re.MULTILINE
    )
    written = sorted(path.name[:4] for path in (DOCS / "decisions").glob("[0-9]*.md"))
    assert sorted(listed) == written


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "zoo/fashion_mnist/README.md"])
def test_links_of_pages_outside_the_site(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text().replace("\n", " ")):
        if not target.startswith("https://"):
            assert (path.parent / target).exists(), target
