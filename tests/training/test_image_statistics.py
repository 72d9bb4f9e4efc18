"""Recipes with a mean and a deviation per channel: they mean the same in every stage, checkpoint and file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qil_deploy.checkpoint import load_model, read_info
from qil_deploy.datasets import load_images
from qil_deploy.errors import ConfigError
from qil_deploy.export import export_onnx
from qil_deploy.integers import freeze
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.runtime_tests.exported_model import read_exported_model
from qil_deploy.training.models.build import build_model
from qil_deploy.training.recipe import Recipe, recipe_from_dict
from qil_deploy.training.train import train

PIXELS = Preprocessing.from_statistics((1, 8, 8), [0.305], [0.376])


def recipe(**changes: object) -> Recipe:
    content: dict[str, Any] = {
        "name": "tiny",
        "data": "digits",
        "mean": [0.305],
        "std": [0.376],
        "model": {"name": "resnet8", "width": 4},
        "float_training": {"epochs": 2, "batch_size": 64},
        "stages": [
            {"weight_bits": 4, "activation_bits": 4, "epochs": 1, "batch_size": 64},
            {"weight_bits": 3, "activation_bits": 3, "epochs": 1, "batch_size": 64, "frozen_epochs": 1},
            {"weight_bits": 2, "activation_bits": 3, "epochs": 1, "batch_size": 64, "from_float": True},
        ],
    }
    return recipe_from_dict(content | changes, "test")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(recipe(), folder)
    return folder


def test_every_stage_computes_from_pixels_what_its_file_computes(finished: Path, tmp_path: Path) -> None:
    images = load_images("digits", "test").images[:64]
    x = torch.from_numpy(PIXELS.normalize(images))
    for path in sorted(finished.glob("w*.safetensors")):
        info, model = load_model(path, build_model)
        assert info.preprocessing == PIXELS
        frozen = model if info.kind == "frozen" else freeze(model)
        export_onnx(frozen, tmp_path / "m.onnx", preprocessing=info.preprocessing, class_names=info.class_names)
        with torch.no_grad():
            expected = frozen(x).numpy()
        found = read_exported_model(tmp_path / "m.onnx").onnx_predictor()(images)
        np.testing.assert_array_equal(found, expected, strict=True)


def test_it_learns_as_without(finished: Path) -> None:
    for path in finished.glob("*.safetensors"):
        assert read_info(path).metrics["accuracy"] > 60


def test_statistics_that_do_not_fit_the_images_are_refused(tmp_path: Path) -> None:
    colours = recipe(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    with pytest.raises(ConfigError, match="recipe tiny: mean has 3 numbers, but images have 1 channels"):
        train(colours, tmp_path / "run")
