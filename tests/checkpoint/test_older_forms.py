"""Checkpoints from before layers absorbed operators after moves keep their form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from qil_deploy.checkpoint import METADATA_KEY, CheckpointInfo, load_model, read_checkpoint, save_checkpoint
from qil_deploy.checkpoint.safetensors_file import file_content
from qil_deploy.config import QuantConfig
from qil_deploy.integers.freeze_model import freeze
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.preparation import prepare
from qil_deploy.preprocessing import Preprocessing

GRID = Preprocessing(channels=3, height=8, width=8, scale=0.0123, zero_point=77)


def decoder(_name: str, _arguments: dict[str, Any]) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 6, 4, 2, 1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.MaxPool2d(2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Flatten(), nn.Linear(80, 2),
    )  # fmt: skip


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    ("kind", "placement"), [("quantized", "integer"), ("frozen", "integer"), ("quantized", "paper")]
)
def test_what_stood_apart_stays_so(
    kind: Literal["quantized", "frozen"], placement: Literal["integer", "paper"], *, apart: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config, path = QuantConfig(placement=placement, norms_apart=apart), tmp_path / "old.safetensors"
    x = (torch.randint(0, 256, (16, *GRID.shape)) - 77.0) * GRID.scale
    model: nn.Module = prepare(decoder("", {}), config, x, input_grid=GRID)
    calibrate(model, [x])
    if kind == "frozen":
        model = freeze(model)
    info = CheckpointInfo(
        kind=kind, model_name="decoder", model_arguments={}, config=config, preprocessing=GRID, data="digits",
        class_names=("a", "b"), metrics={},
    )  # fmt: skip
    save_checkpoint(path, info, model)
    if apart:  # as those who did not know the word wrote it
        info, tensors = read_checkpoint(path)
        content = json.loads(info.model_dump_json())
        del content["config"]["norms_apart"]
        path.write_bytes(file_content(tensors, {METADATA_KEY: json.dumps(content)}))
    info, again = load_model(path, decoder)
    assert info.config == config
    with torch.no_grad():
        torch.testing.assert_close(again(x), model.eval()(x), rtol=0, atol=0)
