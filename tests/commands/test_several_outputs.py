"""Every command with a network that returns a row and a map, and with one that returns only a map."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy.checkpoint import CheckpointInfo, save_checkpoint
from qil_deploy.config import QuantConfig
from qil_deploy.datasets import load_images, preprocessing_for
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.preparation import prepare
from qil_deploy.training.models import build as models

if TYPE_CHECKING:
    from tests.command_line import Outcome

ARGUMENTS = {"in_channels": 1, "num_classes": 10}


class Heads(nn.Module):
    """A convolution or two, and outputs."""

    def __init__(self, in_channels: int, num_classes: int, *, row: bool) -> None:
        super().__init__()
        self.first, self.inner, self.norm = (
            nn.Conv2d(in_channels, 8, 3, padding=1),
            nn.Conv2d(8, 8, 1),
            nn.BatchNorm2d(8),
        )
        self.dense, self.fc, self.row = nn.Conv2d(8, 4, 1), nn.Linear(8, num_classes), row

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.norm(self.inner(F.relu(self.first(x)))))
        return ({"row": self.fc(x.mean((2, 3)))} if self.row else {}) | {"map": self.dense(x)}


@pytest.fixture(autouse=True)
def two_networks_more(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, row in (("row_and_map", True), ("map_alone", False)):
        monkeypatch.setitem(models.MODELS, name, lambda row=row, **arguments: Heads(**arguments, row=row))


def checkpoints(name: str, folder: Path) -> tuple[Path, Path]:
    """Write an untrained network, in float and quantized."""
    torch.manual_seed(0)
    data = load_images("digits")
    pixels = preprocessing_for("digits", data)
    x = torch.from_numpy(pixels.normalize(data.images[:32]))
    network, config = models.build_model(name, ARGUMENTS), QuantConfig()
    prepared = prepare(network, config, x[:1], input_grid=pixels)
    calibrate(prepared, [x])
    told: dict[str, Any] = {
        "model_name": name, "model_arguments": ARGUMENTS, "preprocessing": pixels, "data": "digits",
        "class_names": data.class_names, "metrics": {},
    }  # fmt: skip
    save_checkpoint(folder / "float.safetensors", CheckpointInfo(kind="float", config=None, **told), network)
    save_checkpoint(folder / "w4a4.safetensors", CheckpointInfo(kind="quantized", config=config, **told), prepared)
    return folder / "float.safetensors", folder / "w4a4.safetensors"


def test_a_row_and_a_map(call: Callable[..., Outcome], tmp_path: Path) -> None:
    floats, quantized = checkpoints("row_and_map", tmp_path)
    model, baseline, report = tmp_path / "w4a4.onnx", tmp_path / "float.onnx", tmp_path / "inspect.json"
    told = call("export", quantized, "-o", model, "--limit", 40, "--golden", 2)
    assert told.code == 0, told.error
    assert call("inspect", model, "--json", report).code == 0
    metadata = json.loads(report.read_text())["metadata"]
    assert [output["name"] for output in metadata["outputs"]] == ["row", "map"]
    assert metadata["freezing"]["images"] == 40
    assert call("export", floats, "-o", baseline).code == 0
    assert call("inspect", baseline).code == 0
    found = call("verify", model, "--limit", 20, "--checkpoint", quantized, "--json", tmp_path / "verify.json")
    assert found.code == 0, found.error
    assert "Output map: 0 of" in found.out
    assert call("verify", baseline, "--limit", 20, "--json", tmp_path / "float.json").code == 0
    assert call("doctor", model, "--json", tmp_path / "doctor.json").code == 0
    names = [tmp_path / f"{name}.json" for name in ("verify", "float", "doctor")]
    assert call("report", *names, "-o", tmp_path / "report.html").code == 0
    limits = ("--limit", 30, "--calibration-images", 30, "--bits", "3")
    told = call("sensitivity", floats, *limits)
    assert told.code == 0, told.error
    assert "inner" in told.out


def test_a_map_alone(call: Callable[..., Outcome], refused: Callable[..., str], tmp_path: Path) -> None:
    floats, quantized = checkpoints("map_alone", tmp_path)
    told = call("export", quantized, "-o", tmp_path / "w4a4.onnx")
    assert told.code == 0, told.error
    assert "What freezing costs could not be measured: the first output of the network has the shape" in told.out
    assert call("doctor", tmp_path / "w4a4.onnx").code == 0
    sentence = refused("sensitivity", floats, "--limit", 30, "--calibration-images", 30)
    assert (
        "the first output of the network has the shape [30, 4, 8, 8]; classes are told by a row of logits" in sentence
    )
