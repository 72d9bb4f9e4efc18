"""Pictures of what was learned: intervals over the histograms of the weights and activations they cut."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, fx

from qil_deploy.files import atomic_path
from qil_deploy.graph import input_of, module_of
from qil_deploy.layers import QuantConv2d, QuantLinear
from qil_deploy.quantizers import ActivationQuantizer

_SAMPLES = 100_000
_BINS = 80
_COLUMNS = 6
_KEPT, _CUT = "#3b6ea5", "#c9ccd1"


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """One histogram: values, the interval over them, and whether it mirrors to negative values."""

    title: str
    values: NDArray[np.float32]
    interval: tuple[float, float]
    mirrored: bool


def plot_intervals(model: fx.GraphModule, images: Tensor, path: Path, title: str) -> None:
    """Draw every learned interval over the values it quantizes: weights above, activations below.

    Args:
        model: a prepared, trained model.
        images: inputs float32 [N, C, H, W] that produce the activations.
        path: the PNG to write.
        title: of the picture.

    Raises:
        OutputError: `path` cannot be written.
    """
    groups = (("weights", _weight_panels(model)), ("activations", _activation_panels(model, images)))
    rows = [(kind, panels[i : i + _COLUMNS]) for kind, panels in groups for i in range(0, len(panels), _COLUMNS)]
    figure = Figure(figsize=(2.4 * _COLUMNS, 2.1 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), _COLUMNS, squeeze=False)
    for row, (kind, panels) in zip(axes, rows, strict=True):
        row[0].set_ylabel(kind)
        for axis in row[len(panels) :]:
            axis.set_visible(False)
        for axis, panel in zip(row, panels, strict=False):
            _draw(axis, panel)
    figure.suptitle(f"{title}: values inside the learned interval are kept (blue), others pruned or clipped (grey)")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _weight_panels(model: fx.GraphModule) -> list[_Panel]:
    return [
        _Panel(
            title=f"{name}\n{layer.weight_quantizer.bits} bits",
            values=_sample(layer.weight),
            interval=layer.weight_quantizer.thresholds,
            mirrored=True,
        )
        for name, layer in model.named_modules()
        if isinstance(layer, QuantConv2d | QuantLinear)
    ]


@torch.no_grad()
def _activation_panels(model: fx.GraphModule, images: Tensor) -> list[_Panel]:
    recorder = _Recorder(model)
    recorder.run(images)
    return recorder.panels


class _Recorder(fx.Interpreter):
    """Runs a prepared model and keeps what reaches each interval quantizer."""

    def __init__(self, model: fx.GraphModule) -> None:
        super().__init__(model)
        self.graph_module = model
        self.panels: list[_Panel] = []

    def run_node(self, node: fx.Node) -> Any:  # noqa: ANN401 - as in the base class
        """Record the input of an interval quantizer, then run the node."""
        if node.op == "call_module":
            quantizer = module_of(self.graph_module, node)
            if isinstance(quantizer, ActivationQuantizer):
                name = str(node.target).removeprefix("intervals.")
                values = _sample(self.env[input_of(node)])
                self.panels.append(
                    _Panel(
                        title=f"into {name}\n{quantizer.bits} bits",
                        values=values[values != 0],
                        interval=quantizer.thresholds,
                        mirrored=False,
                    )
                )
        return super().run_node(node)


def _sample(tensor: Tensor) -> NDArray[np.float32]:
    flat = tensor.detach().reshape(-1)
    values: NDArray[np.float32] = flat[:: max(1, flat.numel() // _SAMPLES)].cpu().numpy()
    return values


def _draw(axis: Axes, panel: _Panel) -> None:
    """Draw one histogram, its bars coloured by whether the interval keeps them, the thresholds as lines."""
    counts, edges = np.histogram(panel.values, bins=_BINS)
    centers = (edges[:-1] + edges[1:]) / 2
    lower, upper = panel.interval
    magnitudes = np.abs(centers) if panel.mirrored else centers
    kept = (magnitudes > lower) & (magnitudes < upper)
    axis.bar(centers, counts, width=np.diff(edges), color=np.where(kept, _KEPT, _CUT))
    thresholds = {lower, upper}
    if panel.mirrored:
        # A threshold below zero prunes no magnitude.
        thresholds = {sign * value for value in thresholds if value > 0 for sign in (-1, 1)}
    for threshold in thresholds:
        if edges[0] <= threshold <= edges[-1]:
            axis.axvline(threshold, color="black", linewidth=0.8, linestyle="--")
    axis.set_title(panel.title, fontsize=8)
    axis.set_yticks([])
    axis.tick_params(labelsize=7)
