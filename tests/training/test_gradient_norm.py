"""Bounded gradients: no step is longer than the recipe allows, and frozen epochs do not undo a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qil_deploy.checkpoint import read_checkpoint
from qil_deploy.errors import ConfigError
from qil_deploy.training.models.build import build_model
from qil_deploy.training.recipe import Recipe, recipe_from_dict
from qil_deploy.training.train import train

# Without ReLU, and with constant statistics, nothing holds the outputs together when weights move.
NETWORK = """
from torch import nn

def block(channels, out, stride):
    return [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.GELU()]

def gated(in_channels, num_classes):
    layers = [*block(in_channels, 8, 1), *block(8, 16, 2), *block(16, 16, 1)[:2], nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))
"""


def recipe(**changes: object) -> Recipe:
    content: dict[str, Any] = {
        "name": "tiny",
        "data": "digits",
        "seed": 0,
        "model": {"name": "resnet8", "width": 4},
        "float_training": {"epochs": 1, "batch_size": 64, "weight_decay": 0.0},
        "stages": [],
    }
    return recipe_from_dict(content | changes, "test")


def test_steps_are_as_long_as_the_bound_allows(tmp_path: Path) -> None:
    bounded = recipe(float_training={"epochs": 1, "batch_size": 64, "weight_decay": 0.0, "gradient_norm": 1e-6})
    before = {name: p.detach().clone() for name, p in _fresh().named_parameters()}

    def moved(what: Recipe, folder: str) -> float:
        train(what, tmp_path / folder)
        _, tensors = read_checkpoint(tmp_path / folder / "float.safetensors")
        return float(torch.cat([(tensors[name] - p).flatten() for name, p in before.items()]).norm())

    # 23 steps of rate 0.1 and below, each tenfold by momentum at most.
    assert moved(bounded, "bounded") < 23 * 0.1 * 1e-6 * 10
    assert moved(recipe(), "free") > 0.1


def _fresh() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("resnet8", {"in_channels": 1, "num_classes": 10, "width": 4})


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_bounds_that_are_none_are_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="gradient_norm"):
        recipe(float_training={"epochs": 1, "gradient_norm": value})


def test_frozen_epochs_with_float_parts_do_not_undo_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With unbounded gradients this run ends at chance."""
    (tmp_path / "gated_networks.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    stage = {"weight_bits": 4, "activation_bits": 4, "epochs": 2, "batch_size": 64, "frozen_epochs": 1}
    trained = train(
        recipe(
            model={"name": "gated_networks:gated"},
            float_training={"epochs": 4, "batch_size": 64},
            stages=[stage],
            allow_float=True,
        ),
        tmp_path / "run",
    )
    (result,) = trained.stages
    assert result.frozen_at_once is not None
    assert result.frozen_accuracy is not None
    assert result.frozen_at_once > 80.0
    assert result.frozen_accuracy > result.frozen_at_once - 2.0
