"""While the site is built: the options of every command, from the command line itself, on the page of commands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from qil_deploy.commands import app

PLACE = "<!-- options -->"


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace the placeholder by a section per command."""
    if PLACE not in markdown:
        return markdown
    sections = (section(name, command) for name, command in commands("", get_command(app)))
    return markdown.replace(PLACE, "\n\n".join(sections))


def commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - a class of click's, or typer's own
    """Yield (name, command) of every command that does something, those of groups included."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for below, inner in command.commands.items():
        yield from commands(f"{name} {below}".strip(), inner)


def section(name: str, command: Any) -> str:  # noqa: ANN401 - as above
    """Return heading, description and options of a command."""
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    rows = [f"| `{', '.join(option.opts + option.secondary_opts)}` | {described(option)} |" for option in options]
    table = ["| option | |", "|---|---|", *rows] if rows else []
    return "\n".join([f"### {name}", "", command.help or "", "", *table])


def described(option: Any) -> str:  # noqa: ANN401 - as above
    """Return the help of an option and its default."""
    text = " ".join((option.help or "").split()).replace("|", "\\|")
    shown = option.default is not None and not option.is_flag and option.default != ()
    return f"{text} Default: `{getattr(option.default, 'value', option.default)}`." if shown else text
