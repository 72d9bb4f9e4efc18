"""Bars and dots with intervals, as inline SVG: no dependency, legible at any width, dark where the page is.

Lengths are shares of the width, so that a picture fits a telephone and its text keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree.ElementTree import Element

from qil_deploy.html_elements import element

_COLOURS: Final = 4
_HEIGHT, _MIDDLE = 18, 9

STYLE = """
.chart { max-width: 48rem; margin: 1rem 0; break-inside: avoid; }
.chart figcaption { font-weight: 600; color: inherit; }
.chart p { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; margin: .5rem 0 0; }
.chart p span { overflow-wrap: anywhere; font-size: .875rem; font-variant-numeric: tabular-nums; }
.chart svg { display: block; width: 100%; overflow: visible; }
.chart .c0 { fill: #3b6ea5; } .chart .c1 { fill: #c27a2c; } .chart .c2 { fill: #4f8f5b; } .chart .c3 { fill: #8a5fa8; }
.chart .track { fill: var(--soft); } .chart .whisker { stroke: currentColor; stroke-width: 1.5; }
.chart .mark { stroke: currentColor; stroke-width: 1.5; stroke-dasharray: 2 2; }
.chart .axis { fill: var(--faint); font-size: 11px; }
.chart .one { stroke: var(--faint); stroke-width: 1; }
@media (prefers-color-scheme: dark) {
  .chart .c0 { fill: #6fa3dc; } .chart .c1 { fill: #e0a060; } .chart .c2 { fill: #7fbf8b; }
  .chart .c3 { fill: #b892d3; }
}
@media print { .chart * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One line of a picture.

    Attributes:
        label, text: what it is, and its value in words.
        value: where the bar ends, or the dot is.
        low, high: of the interval around it, if there is one.
        tail: a further value, marked by a dotted line where it is not far outside (a 95th percentile, say).
        series: lines of the same number have the same colour.
    """

    label: str
    text: str
    value: float
    low: float | None = None
    high: float | None = None
    tail: float | None = None
    series: int = 0


def bar_chart(title: str, marks: Sequence[Mark], unit: str) -> Element:
    """Return bars from zero, with whiskers where there are intervals."""
    end = _end(marks)
    pictures = []
    for mark in marks:
        shapes = [_box(0.0, mark.value / end, f"c{mark.series % _COLOURS}"), *_whisker(mark, end)]
        if mark.tail is not None and mark.tail <= end:
            shapes.append(_line(mark.tail / end, mark.tail / end, "mark", spread=7))
        pictures.append(shapes)
    return _figure(title, marks, pictures, end, unit)


def dot_chart(title: str, marks: Sequence[Mark], unit: str) -> Element:
    """Return dots around a line at 1, for ratios, with whiskers where there are intervals."""
    end = _end([*marks, Mark(label="", text="", value=1.0)])
    pictures = []
    for mark in marks:
        one = _line(1.0 / end, 1.0 / end, "one", spread=_MIDDLE)
        place = {"cx": _share(mark.value / end), "cy": str(_MIDDLE), "r": "4.5", "class": f"c{mark.series % _COLOURS}"}
        pictures.append([one, *_whisker(mark, end), Element("circle", place)])
    return _figure(title, marks, pictures, end, unit)


def _figure(title: str, marks: Sequence[Mark], pictures: Sequence[Sequence[Element]], end: float, unit: str) -> Element:
    figure = element("figure", element("figcaption", title), class_="chart")
    for mark, shapes in zip(marks, pictures, strict=True):
        figure.append(element("p", element("span", mark.label), element("span", mark.text)))
        track = _box(0.0, 1.0, "track")
        label = f"{mark.label}: {mark.text}"
        figure.append(element("svg", track, *shapes, height=str(_HEIGHT), role="img", aria_label=label))
    figure.append(_axis(end, unit))
    return figure


def _axis(end: float, unit: str) -> Element:
    """Return the numbers below a picture: zero, the middle and the end."""
    axis = Element("svg", {"height": "16", "aria-hidden": "true"})
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        text = Element("text", {"x": _share(share), "y": "12", "text-anchor": anchor, "class": "axis"})
        text.text = _number(share * end) + (f" {unit}" if unit and share == 1.0 else "")
        axis.append(text)
    return axis


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= value < 1e15 else f"{value:g}"


def _whisker(mark: Mark, end: float) -> list[Element]:
    if mark.low is None or mark.high is None:
        return []
    low, high = mark.low / end, min(mark.high / end, 1.0)
    ends = [_line(at, at, "whisker", spread=4) for at in (low, high)]
    return [_line(low, high, "whisker", spread=0), *ends]


def _box(start: float, stop: float, name: str) -> Element:
    height = _HEIGHT - 4
    return Element(
        "rect", {"x": _share(start), "y": "2", "width": _share(stop - start), "height": str(height), "class": name}
    )


def _line(start: float, stop: float, name: str, *, spread: int) -> Element:
    top, bottom = str(_MIDDLE - spread), str(_MIDDLE + spread)
    return Element("line", {"x1": _share(start), "x2": _share(stop), "y1": top, "y2": bottom, "class": name})


def _share(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.3f}%"


def _end(marks: Sequence[Mark]) -> float:
    """Return a round number that no value lies beyond, nor an interval that is not out of all proportion."""
    largest = max((mark.value for mark in marks), default=0.0)
    highs = [mark.high for mark in marks if mark.high is not None and mark.high <= 3 * largest]
    largest = max([largest, *highs])
    if not 0 < largest < 1e300:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(largest))
    return next(step * unit for step in (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0) if step * unit >= largest)
