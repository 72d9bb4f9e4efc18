"""The HTML page of a training run's report, from its figures and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.etree.ElementTree import Element

from qil_deploy.html_elements import Child, element, page, picture, table
from qil_deploy.training.metrics_file import EpochLine

from .plots import PhaseCurve, confusion_figure, curves_figure, png
from .run_report import LayerShares, RunReport, StageReport

_LARGEST_TABLE = 20  # classes whose confusions fit into a table
_LISTED = 10  # confused pairs, and of many classes the worst


@dataclass(frozen=True, kw_only=True)
class Histograms:
    """The pictures of one stage, as figures of the page."""

    weights: tuple[Element, ...]
    activations: tuple[Element, ...]


def render(report: RunReport, histograms: Sequence[Histograms], recipe_text: str) -> str:
    """Return the page.

    Args:
        report: the figures.
        histograms: of each stage of the report.
        recipe_text: shown as it is.
    """
    stages = (
        child
        for stage, pictures in zip(report.stages, histograms, strict=True)
        for child in _stage(stage, pictures, report.activation_images)
    )
    return page(
        f"{report.name}: training report",
        element("h1", report.name),
        element("p", f"{report.model} on {report.data}, {report.test_images:,} test images."),
        element("h2", "Accuracy"),
        _headline(report),
        *_curves(report.epochs),
        *stages,
        *_confusion(report),
        element("h2", "Recipe"),
        element("pre", recipe_text),
        element("h2", "Versions"),
        element("p", _versions(report)),
    )


def _headline(report: RunReport) -> Element:
    rows = [["float", _percent(report.float_accuracy), *["-"] * 4]]
    rows += [
        [
            each.name,
            _percent(each.accuracy),
            _percent(each.frozen_at_once),
            _percent(each.frozen_accuracy),
            _count(each.changed_at_once),
            _count(each.changed),
        ]
        for each in report.stages
    ]
    heads = [
        "network",
        "as trained",
        "frozen at once",
        "frozen and trained on",
        "changed at once",
        "changed at the end",
    ]
    return element(
        "section",
        table(heads, rows, "Accuracy of each stage"),
        element(
            "p",
            "Accuracy on the test images. A stage is trained with fake quantization; frozen, it computes as the "
            "exported model does. Changed: test images that get another class than before freezing.",
            class_="note",
        ),
    )


def _curves(epochs: Sequence[EpochLine]) -> list[Child]:
    if not epochs:
        return []
    phases = [_phase_curve(name, list(lines)) for name, lines in groupby(epochs, key=lambda line: line.phase)]
    text = f"Loss and accuracy over {len(epochs)} epochs of the phases {', '.join(phase.name for phase in phases)}"
    return [element("h2", "Curves"), picture(png(curves_figure(phases), 130), text)]


def _phase_curve(name: str, lines: Sequence[EpochLine]) -> PhaseCurve:
    return PhaseCurve(
        name=name,
        losses=[_number(line.loss) for line in lines],
        train_accuracies=[_number(line.train_accuracy) for line in lines],
        test_accuracies=[_number(line.test_accuracy) for line in lines],
    )


def _stage(stage: StageReport, histograms: Histograms, images: int) -> list[Child]:
    heads = (
        "layer",
        *(f"weights: {each}" for each in ("bits", "interval", "gamma", "pruned", "clipped", "zero")),
        *(f"inputs: {each}" for each in ("bits", "interval", "pruned", "clipped", "zero")),
    )
    return [
        element("h2", f"Stage {stage.name}"),
        table(heads, (_layer_row(each) for each in stage.layers), f"What each layer of {stage.name} cuts"),
        element(
            "p",
            "Pruned: below the interval (weights: in magnitude). Clipped: above it, or outside an 8-bit range. Zero: "
            f"all whose code is that of 0. Inputs were measured on {images} test images.",
            class_="note",
        ),
        _gallery("Intervals over weights", histograms.weights),
        _gallery("Intervals over activations (without zeros)", histograms.activations),
    ]


def _gallery(title: str, pictures: Sequence[Element]) -> Element:
    grid = element("div", *pictures, class_="grid")
    return element("details", element("summary", f"{title}: blue is kept, grey pruned or clipped"), grid, open="open")


def _layer_row(each: LayerShares) -> list[Child]:
    return [
        each.layer,
        str(each.weight_bits),
        _interval(each.weight_lower, each.weight_upper),
        f"{each.gamma:.3f}",
        *(_share(share) for share in (each.pruned_weights, each.clipped_weights, each.zero_weights)),
        str(each.input_bits),
        _interval(each.input_lower, each.input_upper),
        *(_share(share) for share in (each.pruned_inputs, each.clipped_inputs, each.zero_inputs)),
    ]


def _confusion(report: RunReport) -> list[Child]:
    wrong = sorted((each for each in report.confusions if each.label != each.predicted), key=lambda each: -each.images)
    matrix = report.matrix()
    totals = matrix.sum(1)
    pairs = (
        [
            report.class_names[each.label],
            report.class_names[each.predicted],
            f"{each.images:,}",
            _share(each.images / totals[each.label]),
        ]
        for each in wrong[:_LISTED]
    )
    return [
        element("h2", f"Confusions of {report.network}"),
        element("p", f"{_percent(report.accuracy)} of the test images are classified rightly."),
        _matrix(report) if len(report.class_names) <= _LARGEST_TABLE else _many_classes(report),
        element("h3", "Most confused"),
        table(("class", "taken for", "images", "share of the class"), pairs, "Most confused pairs of classes"),
    ]


def _matrix(report: RunReport) -> Element:
    """Return the confusion matrix as a table, each cell tinted by its share of the class."""
    matrix = report.matrix()
    rows: list[list[Child]] = []
    for label, (name, counts) in enumerate(zip(report.class_names, matrix, strict=True)):
        total = int(counts.sum())
        cells = [
            _tinted(int(count), count / max(total, 1), right=label == predicted)
            for predicted, count in enumerate(counts)
        ]
        rows.append([name, *cells, f"{total:,}", _share(counts[label] / total) if total else "-"])
    return table(("class", *report.class_names, "images", "right"), rows, "Images of each class by the class given")


def _tinted(count: int, share: float, *, right: bool) -> Element:
    colour = "59, 110, 165" if right else "200, 80, 40"
    # Few errors should be seen, too: the square root lifts them.
    return element("td", f"{count:,}", style=f"background: rgba({colour}, {0.7 * share**0.5:.2f})")


def _many_classes(report: RunReport) -> Element:
    matrix = report.matrix()
    totals = matrix.sum(1)
    right = {label: matrix[label, label] / totals[label] for label in range(len(totals)) if totals[label]}
    worst = sorted(right, key=right.__getitem__)[:_LISTED]
    rows = ([report.class_names[label], f"{totals[label]:,}", _share(right[label])] for label in worst)
    return element(
        "section",
        picture(png(confusion_figure(matrix), 130), f"Confusion matrix of {len(totals)} classes"),
        element("h3", "Worst classes"),
        table(("class", "images", "right"), rows, "Classes that are recognised worst"),
    )


def _versions(report: RunReport) -> str:
    each = report.versions
    return (
        f"qil-deploy {each.qil_deploy}, torch {each.torch}, torchvision {each.torchvision}, NumPy {each.numpy}, "
        f"Python {each.python}"
    )


def _interval(lower: float, upper: float) -> str:
    return f"{lower:.3g} to {upper:.3g}"


def _share(share: float) -> str:
    return f"{100.0 * share:.1f} %"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} %"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
