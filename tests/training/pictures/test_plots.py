"""Pictures are written, complete, and have as many panels as there are intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import fx

from qil_deploy.config import QuantConfig
from qil_deploy.errors import OutputError
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.preparation import prepare
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.training.models.build import build_model
from qil_deploy.training.pictures.interval_shares import activation_values, weight_values
from qil_deploy.training.pictures.plots import (
    PhaseCurve,
    curves_figure,
    interval_activations,
    intervals_figure,
    plain,
    plot_intervals,
    png,
)


@pytest.fixture
def model() -> fx.GraphModule:
    grid = Preprocessing.from_statistics((1, 8, 8), 0.3, 0.4)
    network = build_model("resnet8", {"in_channels": 1, "num_classes": 10, "width": 4})
    config = QuantConfig(weight_bits=3, activation_bits=2)
    result = prepare(network, config, torch.zeros(1, 1, 8, 8), input_grid=grid).eval()
    calibrate(result, [torch.randn(32, 1, 8, 8)])
    return result


def test_every_interval_has_its_panel(model: fx.GraphModule) -> None:
    activations = interval_activations(activation_values(model, torch.randn(8, 1, 8, 8)))
    figure = intervals_figure(weight_values(model), activations, "tiny")
    titles = [axis.get_title() for axis in figure.axes if axis.get_visible()]
    assert len(titles) == len(set(titles)) == 10 + 6
    assert "conv1\n7 bits" in titles
    assert "into layer1_0_conv1\n2 bits" in titles


def test_intervals_are_written_as_png(model: fx.GraphModule, tmp_path: Path) -> None:
    plot_intervals(model, torch.randn(8, 1, 8, 8), tmp_path / "intervals.png", "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["intervals.png"]
    with Image.open(tmp_path / "intervals.png") as picture:
        picture.load()
        assert picture.format == "PNG"
    with pytest.raises(OutputError, match="is a folder"):
        plot_intervals(model, torch.randn(8, 1, 8, 8), tmp_path, "tiny")


def test_phases_follow_one_another() -> None:
    phases = [
        PhaseCurve(name=name, losses=[1.0, 0.5], train_accuracies=[10.0, 20.0], test_accuracies=[float("nan"), 20.0])
        for name in ("float", "w4a4", "w2a2")
    ]
    loss, accuracy = curves_figure(phases).axes
    assert [np.asarray(line.get_xdata()).tolist() for line in loss.lines] == [[1, 2], [3, 4], [5, 6]]
    assert len(accuracy.lines) == 6
    assert [text.get_text() for text in loss.texts] == ["float", "w4a4", "w2a2"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["a$x_{$", "$a$", "\x1b[2J\n"])
def test_names_are_no_formulas_and_have_only_characters_that_are_drawn(name: str) -> None:
    """A dollar in the name of a checkpoint or recipe once began a TeX formula."""
    phase = PhaseCurve(name=name, losses=[1.0], train_accuracies=[10.0], test_accuracies=[20.0])
    figure = curves_figure([phase])
    assert png(figure).startswith(b"\x89PNG")
    assert [text.get_text() for text in figure.axes[0].texts] == [plain(name)]
