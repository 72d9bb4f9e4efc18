"""Pictures of training: intervals over the histograms of the values they cut, curves, confusion of classes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from qil_deploy.files import write_bytes
from qil_deploy.network import prepared_model
from qil_deploy.untrusted_text import excerpt

from .interval_shares import QuantizedValues, activation_values, weight_values

INTERVALS_FOLDER = "intervals."  # where a prepared model has its activation interval quantizers

_BINS = 80
_COLUMNS = 6
_KEPT, _CUT, _LINE = "#3b6ea5", "#c9ccd1", "#b3541e"


@dataclass(frozen=True, kw_only=True)
class PhaseCurve:
    """Epochs of one phase; accuracies in percent, NaN if there is no figure."""

    name: str
    losses: Sequence[float]
    train_accuracies: Sequence[float]
    test_accuracies: Sequence[float]


def plot_intervals(model: nn.Module, images: Tensor, path: Path, title: str) -> None:
    """Draw every learned interval over the values it quantizes: weights above, activations below.

    Args:
        model: a prepared, trained model.
        images: inputs float32 [N, C, H, W] that produce the activations.
        path: the PNG to write.
        title: of the picture.

    Raises:
        OutputError: `path` cannot be written.
        DataError, UnsupportedModelError: as `activation_values`.
    """
    prepared = prepared_model(model, "plot_intervals", may_be_frozen=False)
    activations = interval_activations(activation_values(prepared, images))
    write_bytes(path, png(intervals_figure(weight_values(prepared), activations, title)))


def interval_activations(values: dict[str, QuantizedValues]) -> list[QuantizedValues]:
    """Keep the activations that an interval cuts, not those on an 8-bit range."""
    return [each for name, each in values.items() if name.startswith(INTERVALS_FOLDER)]


def png(figure: Figure, dpi: int = 110) -> bytes:
    """Return a figure as a PNG file."""
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    # Without the name of the software, which includes its home page's address.
    figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
    return stream.getvalue()


def intervals_figure(weights: Sequence[QuantizedValues], activations: Sequence[QuantizedValues], title: str) -> Figure:
    """Draw all histograms of a model with their intervals."""
    groups = (("weights", weights), ("activations", activations))
    rows = [(kind, values[i : i + _COLUMNS]) for kind, values in groups for i in range(0, len(values), _COLUMNS)]
    figure = Figure(figsize=(2.4 * _COLUMNS, 2.1 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), _COLUMNS, squeeze=False)
    for row, (kind, group) in zip(axes, rows, strict=True):
        row[0].set_ylabel(kind)
        for axis in row[len(group) :]:
            axis.set_visible(False)
        for axis, values in zip(row, group, strict=False):
            _draw(axis, values)
            axis.set_title(_panel_title(values), fontsize=8)
            axis.tick_params(labelsize=7)
    figure.suptitle(
        f"{plain(title)}: values inside the learned interval are kept (blue), others pruned or clipped (grey)"
    )
    return figure


def histogram_figure(values: QuantizedValues) -> Figure:
    """Draw one histogram with its interval, small and without a title."""
    figure = Figure(figsize=(2.8, 1.5))
    axis = figure.add_axes((0.04, 0.2, 0.92, 0.76))
    _draw(axis, values)
    axis.tick_params(labelsize=9)
    axis.spines[["left", "right", "top"]].set_visible(False)
    axis.locator_params(axis="x", nbins=5)
    return figure


def curves_figure(phases: Sequence[PhaseCurve]) -> Figure:
    """Draw loss and accuracies over the epochs of all phases, one after the other."""
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    loss, accuracy = figure.subplots(2, 1, sharex=True)
    start = 0
    for index, phase in enumerate(phases):
        epochs = np.arange(start, start + len(phase.losses)) + 1
        # One epoch is no line.
        loss.plot(epochs, phase.losses, color=_KEPT, marker=".")
        for values, colour, label in (
            (phase.train_accuracies, "#9299a3", "training"),
            (phase.test_accuracies, _KEPT, "test"),
        ):
            accuracy.plot(epochs, values, color=colour, marker=".", label=label if index == 0 else None)
        for axis in (loss, accuracy):
            if index % 2:
                axis.axvspan(start + 0.5, start + len(epochs) + 0.5, color="#f0f1f3", zorder=0)
        middle = start + (len(epochs) + 1) / 2
        loss.annotate(
            plain(phase.name), (middle, 1.02), xycoords=("data", "axes fraction"), rotation=90, ha="center", size=9
        )
        start += len(epochs)
    loss.set_ylabel("loss")
    accuracy.set_ylabel("accuracy, %")
    accuracy.set_xlabel("epoch")
    accuracy.set_xlim(0.5, start + 0.5)
    accuracy.xaxis.get_major_locator().set_params(integer=True)
    accuracy.legend(loc="lower right", frameon=False)
    for axis in (loss, accuracy):
        axis.grid(axis="y", color="#e3e5e8", linewidth=0.6)
        axis.spines[["right", "top"]].set_visible(False)
    return figure


def confusion_figure(matrix: NDArray[np.int64]) -> Figure:
    """Draw a confusion matrix [class, predicted] as shares of each class, for more classes than a table can hold."""
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axis = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    picture = axis.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest")
    axis.set_xlabel("predicted class")
    axis.set_ylabel("class")
    figure.colorbar(picture, label="share of the class")
    return figure


def _panel_title(values: QuantizedValues) -> str:
    name = values.name if values.mirrored else f"into {values.name.removeprefix(INTERVALS_FOLDER)}"
    return f"{plain(name)}\n{values.bits} bits"


def plain(text: str) -> str:
    """Escape a name for a picture, in which text between dollars would be a formula."""
    return excerpt(text).replace("$", r"\$")


def _draw(axis: Axes, values: QuantizedValues) -> None:
    """Draw one histogram, its bars coloured by whether the interval keeps them, the thresholds as lines."""
    # Zeros come from a ReLU, so many that nothing else could be seen.
    sample = values.sample if values.mirrored else values.sample[values.sample != 0]
    counts, edges = np.histogram(sample, bins=_BINS)
    centers = (edges[:-1] + edges[1:]) / 2
    magnitudes = np.abs(centers) if values.mirrored else centers
    kept = (magnitudes > values.lower) & (magnitudes < values.upper)
    for chosen, colour in ((~kept, _CUT), (kept, _KEPT)):
        axis.stairs(np.where(chosen, counts, 0), edges, fill=True, color=colour)
    thresholds = {values.lower, values.upper}
    if values.mirrored:
        # A threshold below zero prunes no magnitude.
        thresholds = {sign * value for value in thresholds if value > 0 for sign in (-1, 1)}
    for threshold in thresholds:
        if edges[0] <= threshold <= edges[-1]:
            axis.axvline(threshold, color=_LINE, linewidth=0.9, linestyle="--")
    axis.set_yticks([])
