"""The plot of `step_growth`: the cost of a quantized step in float steps, by batch size and by number of layers."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from step_growth import TAUGHT, USUAL_BATCH, USUAL_NETWORK, Case, StepGrowthReport

# Curves in each plot: the step's name, its label and its colour.
LINES = (
    ("quantized", "quantized", "#3b6ea5"),
    ("gamma", "quantized, gamma trained", "#b3541e"),
    (TAUGHT, "quantized, with a teacher", "#4f8a4c"),
)


def growth_svg(report: StepGrowthReport) -> bytes:
    """Return the plot as SVG: medians of ratios to the float step, with 95 % intervals."""
    with mpl.rc_context({"svg.hashsalt": "step_growth", "svg.fonttype": "none"}):  # always the same bytes
        figure = Figure(figsize=(8.0, 3.4), layout="constrained")
        FigureCanvasSVG(figure)
        by_batch, by_layers = figure.subplots(1, 2, sharey=True)
        _draw(by_batch, cases_by_batch(report.cases), lambda case: case.batch)
        _draw(by_layers, cases_by_layers(report.cases), lambda case: case.layers)
        by_batch.set_xlabel(f"images per step ({USUAL_NETWORK})")
        by_layers.set_xlabel(f"layers ({USUAL_BATCH} images per step)")
        by_batch.set_ylabel("time of a step, float = 1")
        by_batch.legend(fontsize=8, frameon=False)
        content = io.BytesIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def cases_by_batch(cases: Sequence[Case]) -> list[Case]:
    """Return the cases with the default network, the smallest batch first."""
    return sorted((case for case in cases if case.network == USUAL_NETWORK), key=lambda case: case.batch)


def cases_by_layers(cases: Sequence[Case]) -> list[Case]:
    """Return the cases with the default batch size, the shallowest network first."""
    return sorted((case for case in cases if case.batch == USUAL_BATCH), key=lambda case: case.layers)


def _draw(axis: Axes, cases: Sequence[Case], place: Callable[[Case], int]) -> None:
    """Draw a line for each kind of step over the positions of cases, which roughly double from one to the next."""
    places = [place(case) for case in cases]
    for name, label, color in LINES:
        steps = [step for case in cases for step in case.steps if step.model == name]
        below = [step.ratio - step.ratio_low for step in steps]
        above = [step.ratio_high - step.ratio for step in steps]
        ratios = [step.ratio for step in steps]
        axis.errorbar(places, ratios, (below, above), label=label, color=color, marker="o", markersize=4, capsize=3)
    axis.axhline(1.0, color="#888888", linestyle="--", linewidth=0.8)
    axis.set_xscale("log", base=2)
    axis.set_xticks(places, [str(each) for each in places])
    axis.minorticks_off()
    axis.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    axis.set_axisbelow(True)
