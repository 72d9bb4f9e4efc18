"""Figures as text, the same everywhere on the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from xml.etree.ElementTree import Element

from qil_deploy.html_elements import Child, element

from .figures import Model, Run

NOT_MEASURED = "not measured"


def missing(sentence: str = "Not measured.") -> Element:
    """Return a paragraph in place of figures that there are none of."""
    return element("p", sentence, class_="missing")


def note(text: str) -> Element:
    """Return an explanation in small print."""
    return element("p", text, class_="note")


def words(*children: Child) -> Element:
    """Return a cell of text, which wraps."""
    return element("td", *children, class_="words")


def head(text: str) -> Element:
    """Return the heading of a column of text."""
    return element("th", text, scope="col", class_="words")


def state(text: str, status: str) -> Element:
    """Return a cell in the colour of a status."""
    return element("td", text, class_=css_class(status))


def css_class(status: str) -> str:
    """Return the name that the style has for a status."""
    return status.replace(" ", "-")


def digest(sha256: str) -> Element:
    """Return the beginning of a digest, the whole of it where the pointer rests."""
    return element("code", sha256[:12], title=sha256)


def models_of(runs: Sequence[Run]) -> list[Model]:
    """Return every file once; of what several runs say, what was read from the file counts."""
    found: dict[str, Model] = {}
    for model in (model for run in runs for model in run.models):
        earlier = found.get(model.sha256)
        if earlier is None or (earlier.content is None and model.content is not None):
            found[model.sha256] = model
    return list(found.values())


def model_labels(runs: Sequence[Run]) -> dict[str, str]:
    """Return what models are called: by their name, where several share it with the beginning of the digest."""
    models = models_of(runs)
    counts = Counter(model.name for model in models)
    return {
        model.sha256: model.name if counts[model.name] == 1 else f"{model.name} ({model.sha256[:8]})"
        for model in models
    }


def in_run(text: str, run: Run, runs: Sequence[Run]) -> str:
    """Return a text with the name of its run behind it, where there are several."""
    return f"{text}, {run.name}" if len(runs) > 1 else text


def bits(weight_bits: Sequence[int]) -> str:
    """Return bits per layer, alike ones together: "7, 20 x 4"."""
    groups = [(value, len(list(group))) for value, group in groupby(weight_bits)]
    return ", ".join(str(value) if count == 1 else f"{count} x {value}" for value, count in groups) or "32, float"


def milliseconds(value: float | None) -> str:
    """Return a time with three digits."""
    if value is None:
        return NOT_MEASURED
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def between(low: float | None, high: float | None) -> str:
    """Return an interval."""
    return NOT_MEASURED if low is None or high is None else f"{milliseconds(low)} to {milliseconds(high)}"


def percent(share: float | None, digits: int = 2) -> str:
    """Return a share in percent."""
    return NOT_MEASURED if share is None else f"{100 * share:.{digits}f} %"


def count(value: int | None) -> str:
    """Return a whole number with its thousands apart."""
    return NOT_MEASURED if value is None else f"{value:,}"


def plural(number: int, noun: str) -> str:
    """Return a number of things."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
