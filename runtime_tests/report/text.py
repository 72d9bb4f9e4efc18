"""Formats of figures, the same everywhere on the page: filters of its templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Final

NOT_MEASURED: Final = "not measured"


def milliseconds(value: float | None) -> str:
    """Format a time with three digits."""
    if value is None:
        return NOT_MEASURED
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def between(low: float | None, high: float | None) -> str:
    """Format an interval."""
    return NOT_MEASURED if low is None or high is None else f"{milliseconds(low)} to {milliseconds(high)}"


def percent(share: float | None, digits: int = 2) -> str:
    """Format a share in percent."""
    return NOT_MEASURED if share is None else f"{100 * share:.{digits}f} %"


def count(value: int | None) -> str:
    """Format a whole number with thousands separated."""
    return NOT_MEASURED if value is None else f"{value:,}"


def plural(number: int, noun: str, nouns: str | None = None) -> str:
    """Format a number of things."""
    return f"{number:,} {noun if number == 1 else nouns or f'{noun}s'}"


def bits(weight_bits: Sequence[int]) -> str:
    """Format bits per layer, equal ones together: "7, 20 x 4"."""
    groups = [(value, len(list(group))) for value, group in groupby(weight_bits)]
    return ", ".join(str(value) if count == 1 else f"{count} x {value}" for value, count in groups) or "32, float"


def css_class(status: str) -> str:
    """Return the CSS class of a status."""
    return status.replace(" ", "-")


FILTERS: Final[dict[str, Callable[..., str]]] = {
    "bits": bits,
    "count": count,
    "css_class": css_class,
    "milliseconds": milliseconds,
    "percent": percent,
    "plural": plural,
}
