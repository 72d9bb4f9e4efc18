"""A picture of sensitivity: one row per layer, one column per width, the darker the more it hurts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qil_deploy.files import atomic_path
from qil_deploy.training.mixed_precision import Proposal
from qil_deploy.training.sensitivity import LayerSensitivity, Sensitivity

from .plots import plain

_LEAST = 1e-6  # smaller KL is drawn like this one
_DECADES = 4  # and colours span at most this many powers of ten


def plot_sensitivity(sensitivity: Sensitivity, proposal: Proposal | None, path: Path, title: str) -> None:
    """Draw the KL of every trial as a heat map, with the choices of a proposal framed.

    Layers stand in graph order, with their number of weights; those without a trial are left out.

    Raises:
        OutputError: `path` cannot be written.
    """
    layers = [layer for layer in sensitivity.layers if layer.trials]
    widths = sorted({trial.width for layer in layers for trial in layer.trials}, reverse=True)
    values = np.full((len(layers), len(widths)), np.nan)
    for row, layer in enumerate(layers):
        for trial in layer.trials:
            values[row, widths.index(trial.width)] = max(trial.measured.kl, _LEAST)
    most = float(np.nanmax(values))
    figure = Figure(figsize=(3.6 + 1.1 * len(widths), 1.6 + 0.3 * len(layers)), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    least = max(float(np.nanmin(values)), most / 10**_DECADES)
    image = axis.imshow(values, cmap="YlOrRd", norm=LogNorm(min(least, most / 2), most), aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            dark = value > most / 6
            axis.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=7, color="w" if dark else "k")
    axis.set_xticks(range(len(widths)), [f"{width} bits" for width in widths])
    axis.set_yticks(range(len(layers)), [_label(layer, proposal) for layer in layers], fontsize=8)
    axis.tick_params(length=0)
    if proposal is not None:
        for row, layer in enumerate(layers):
            for trial in layer.trials:
                if trial.bits == proposal.bits[layer.name]:
                    corner = (widths.index(trial.width) - 0.47, row - 0.44)
                    axis.add_patch(Rectangle(corner, 0.94, 0.88, fill=False, edgecolor="#1f4e8c", linewidth=2))
    figure.colorbar(image, ax=axis, label="KL to the unchanged network, nats per image")
    figure.suptitle(plain(title) + ("" if proposal is None else "\nframed: proposed"), fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _label(layer: LayerSensitivity, proposal: Proposal | None) -> str:
    kept = proposal is not None and proposal.bits[layer.name] == layer.bits
    return f"{plain(layer.name)} ({layer.weights:,})" + (f", kept at {layer.bits.weight_bits}" if kept else "")
