"""Validate texts, numbers and environments that a browser or a device sent."""

from __future__ import annotations

from qil_deploy.errors import DataError
from qil_deploy.untrusted_text import excerpt

from .report import DeviceEnvironment

_MAX_WORD = 1000
_MAX_FEATURES = 64
_MAX_CPUS = 2**16


def expect(what: str, found: object, expected: object) -> None:
    """Raise `DataError` unless a value is the expected one."""
    if found != expected:
        raise DataError(f"{what} is {_short(found)}, and has to be {_short(expected)}")


def within(what: str, found: float, least: float, most: float) -> None:
    """Raise `DataError` unless a number is from `least` to `most`."""
    if not least <= found <= most:
        raise DataError(f"{what} is {found:g}, and has to be from {least:g} to {most:g}")


def check_environment(environment: DeviceEnvironment, *, browser: bool) -> None:
    """Raise `DataError` unless an environment is possible for a browser, or for a Python."""
    within("environment, cpus", environment.cpus, 1, _MAX_CPUS)
    within("environment, features", len(environment.features), 0, _MAX_FEATURES)
    names = ("browser",) if browser else ("numpy", "python")
    for name in ("browser", "numpy", "python"):
        expect(f"environment, {name} known", getattr(environment, name) is not None, name in names)
    words = [getattr(environment, name) for name in ("onnxruntime", "machine", "cpu", *names)]
    for word in (*words, *environment.features):
        check_word("environment", word)


def check_word(where: str, word: str) -> None:
    """Raise `DataError` unless a text is safe to display: short, no control characters, which terminals obey."""
    if len(word) > _MAX_WORD or not word.isprintable():
        raise DataError(f"{where} has a text that is too long or cannot be printed")


def _short(value: object) -> str:
    return excerpt(repr(value))
