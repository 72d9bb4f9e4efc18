"""The HTML page of a training run's report, from its figures and pictures (`templates/run.html.jinja`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from qil_deploy.pages import page_environment
from qil_deploy.training.metrics_file import EpochLine

from .plots import PhaseCurve, confusion_figure, curves_figure, png
from .run_report import RunReport

_LARGEST_TABLE = 20  # classes whose confusions fit into a table
_LISTED = 10  # confused pairs, and of many classes the worst
_DPI = 130
_TEMPLATES = page_environment(Path(__file__).parent / "templates")
_TEMPLATES.filters |= {
    "count": lambda value: "-" if value is None else f"{value:,}",
    "percent": lambda value: "-" if value is None else f"{value:.2f} %",
    "share": lambda share: f"{100.0 * share:.1f} %",
}


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Histogram of one quantizer: a PNG file, a description, its interval, and the heading."""

    png: bytes
    about: str
    interval: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Histograms:
    """The pictures of one stage."""

    weights: tuple[Histogram, ...]
    activations: tuple[Histogram, ...]


@dataclass(frozen=True, kw_only=True)
class ClassCounts:
    """Numbers of images of one class by predicted class, and the share predicted correctly."""

    label: int
    name: str
    counts: list[int]

    @property
    def total(self) -> int:
        """Images of the class."""
        return sum(self.counts)

    @property
    def right(self) -> float:
        """Share of correct predictions; 0 for a class without images."""
        return self.counts[self.label] / max(self.total, 1)


def render(report: RunReport, histograms: Sequence[Histograms], recipe_text: str) -> str:
    """Return the page.

    Args:
        report: the figures.
        histograms: of each stage of the report.
        recipe_text: shown as it is.
    """
    phases = [_phase_curve(name, list(lines)) for name, lines in groupby(report.epochs, key=lambda line: line.phase)]
    matrix = report.matrix()
    classes = [
        ClassCounts(label=label, name=name, counts=matrix[label].tolist())
        for label, name in enumerate(report.class_names)
    ]
    wrong = [each for each in report.confusions if each.label != each.predicted]
    many = len(classes) > _LARGEST_TABLE
    return _TEMPLATES.get_template("run.html.jinja").render(
        report=report,
        stages=list(zip(report.stages, histograms, strict=True)),
        phases=[phase.name for phase in phases],
        curves=png(curves_figure(phases), _DPI) if phases else b"",
        classes=classes,
        confusion_picture=png(confusion_figure(matrix), _DPI) if many else b"",
        worst=sorted((each for each in classes if each.total), key=lambda each: each.right)[:_LISTED],
        confused=sorted(wrong, key=lambda each: -each.images)[:_LISTED],
        recipe=recipe_text,
    )


def _phase_curve(name: str, lines: Sequence[EpochLine]) -> PhaseCurve:
    return PhaseCurve(
        name=name,
        losses=[_number(line.loss) for line in lines],
        train_accuracies=[_number(line.train_accuracy) for line in lines],
        test_accuracies=[_number(line.test_accuracy) for line in lines],
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value
