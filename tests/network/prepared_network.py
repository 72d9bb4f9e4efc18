"""Networks prepared for tests."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx, nn

from qil_deploy.config import QuantConfig
from qil_deploy.network.preparation import prepare
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.training.models.build import build_model

GRID = Preprocessing(channels=3, height=8, width=8, scale=0.0123, zero_point=77)


def resnet8() -> nn.Module:
    return build_model("resnet8", {"in_channels": 3, "num_classes": 10, "width": 4})


def prepared(model: nn.Module, size: int = 8, channels: int = 3, **config: object) -> fx.GraphModule:
    grid = replace(GRID, channels=channels, height=size, width=size)
    return prepare(model, QuantConfig(**config), torch.zeros(1, *grid.shape), input_grid=grid)
