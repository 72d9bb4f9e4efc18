"""Read recipes: a TOML file, or one included in the package, with single values changed (`--set`)."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from qil_deploy.errors import ConfigError
from qil_deploy.untrusted_text import excerpt

from .recipe import Recipe, recipe_from_dict

RECIPE_LIMIT = 1 << 20  # bytes of a file
_DEEPEST_KEY = 8


def load_recipe(path: Path, changes: tuple[str, ...] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: a TOML file, or the bare name of a recipe that ships with the package.
        changes: `key=value` each, applied over the file; the key is dotted (`stages.0.epochs=1`), the value
            TOML.

    Raises:
        ConfigError: missing file, invalid TOML, unknown key, or a value that is not allowed.
    """
    folder = Path(__file__).parent / "recipes"
    shipped = folder / f"{path}.toml"
    chosen = shipped if not path.exists() and shipped.exists() else path
    try:
        content = _parse_toml(_read_text(chosen))
    except OSError as error:
        known = ", ".join(sorted(entry.stem for entry in folder.glob("*.toml")))
        raise ConfigError(f"recipe {path} cannot be read ({error.strerror}); shipped recipes: {known}.") from error
    except ValueError as error:
        raise ConfigError(f"recipe {path} is not valid TOML: {excerpt(str(error), 240)}.") from error
    for change in changes:
        _apply_change(content, change)
    return recipe_from_dict(content, str(path))


def _read_text(path: Path) -> str:
    """Read a file of moderate size as UTF-8, with or without a byte order mark.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8, or too large to be a recipe.
        ConfigError: it is not a file.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ConfigError(f"recipe {path} is a device or a pipe, which may never end; name a TOML file.")
    with path.open("rb") as stream:
        content = stream.read(RECIPE_LIMIT + 1)
    if len(content) > RECIPE_LIMIT:
        raise ValueError(f"it has more than {RECIPE_LIMIT:,} bytes")
    return content.decode("utf-8-sig")


def _parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        ValueError: it is not TOML, nested too deep, or holds an integer of thousands of digits.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _apply_change(content: dict[str, Any], change: str) -> None:
    """Set one dotted key of a nested dictionary (integers index lists) to a TOML value."""
    key, separator, text = change.partition("=")
    if not separator:
        raise ConfigError(f"--set {excerpt(repr(change))} must be key=value, for example seed=1.")
    *parents, last = key.strip().split(".")
    if len(parents) >= _DEEPEST_KEY:
        raise ConfigError(f"--set {excerpt(repr(change))}: the recipe has no {excerpt(repr(key.strip()), 60)}.")
    value = _parse_value(change, text)
    node: Any = content
    try:
        for parent in parents:
            node = node[_index(parent)] if isinstance(node, list) else node.setdefault(parent, {})
        node[_index(last) if isinstance(node, list) else last] = value
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--set {excerpt(repr(change))}: the recipe has no {excerpt(repr(key.strip()), 60)}."
        ) from error


def _parse_value(change: str, text: str) -> Any:  # noqa: ANN401 - whatever TOML holds
    """Return a TOML value, or the text itself if it is not one (a name without quotes)."""
    try:
        return _parse_toml(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    except ValueError as error:
        raise ConfigError(f"--set {excerpt(repr(change))}: {excerpt(str(error), 240)}.") from error


def _index(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"{text!r} is not an index of a list")
    return int(text)
