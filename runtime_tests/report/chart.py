"""Bars and dots with intervals: their data and geometry (`templates/chart.html.jinja` draws them)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One line of a chart.

    Attributes:
        label, text: what it is, and its value in words.
        value: where the bar ends, or the dot is.
        low, high: of the interval around it, if there is one.
        tail: a further value, marked by a dotted line unless it is far outside (a 95th percentile, say).
        series: lines of the same number have the same colour.
    """

    label: str
    text: str
    value: float
    low: float | None = None
    high: float | None = None
    tail: float | None = None
    series: int = 0


@dataclass(frozen=True)
class Chart:
    """Bars from zero; or dots around a line at 1, for ratios.

    Attributes:
        title: above it.
        marks: its lines.
        unit: of the values.
        dots: whether they are dots.
    """

    title: str
    marks: Sequence[Mark]
    unit: str = ""
    dots: bool = False

    @cached_property
    def end(self) -> float:
        """A round number at or above all values, and all intervals that are not out of proportion."""
        largest = max((*(mark.value for mark in self.marks), 1.0 if self.dots else 0.0))
        highs = [mark.high for mark in self.marks if mark.high is not None and mark.high <= 3 * largest]
        largest = max([largest, *highs])
        if not 0 < largest < 1e300:
            return 1.0
        unit = 10.0 ** math.floor(math.log10(largest))
        steps = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0)
        return next(step * unit for step in steps if step * unit >= largest)

    def share(self, value: float) -> str:
        """Return the position of a value as a share of the width."""
        return f"{100 * min(max(value / self.end, 0.0), 1.0):.3f}%"

    @staticmethod
    def number(value: float) -> str:
        """Format a number for the axis."""
        return f"{value:,.0f}" if 1000 <= value < 1e15 else f"{value:g}"
