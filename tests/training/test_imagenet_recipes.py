"""The recipes for ImageNet, run for a few steps on a few tiny pictures in folders of its layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qil_deploy.checkpoint import read_info
from qil_deploy.training.recipe_file import load_recipe
from qil_deploy.training.train import train

# The side of an image that the network can still read, and how many stages: the networks are large.
RUNS = [
    ("imagenet_resnet18_paper", 32, 2),
    pytest.param("imagenet_resnet34_paper", 32, 1, marks=pytest.mark.slow),
    pytest.param("imagenet_alexnet_paper", 64, 1, marks=pytest.mark.slow),
    ("imagenet_resnet18", 32, 1),
]


@pytest.fixture
def pictures(tmp_path: Path, rng: np.random.Generator) -> Path:
    for split, count in (("train", 4), ("val", 1)):
        for label in ("n01", "n02"):
            folder = tmp_path / "imagenet" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (70, 80, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "imagenet"


@pytest.mark.parametrize(("name", "side", "stages"), RUNS)
def test_it_takes_a_few_steps(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, side: int, stages: int
) -> None:
    monkeypatch.setenv("QIL_DEPLOY_IMAGENET", str(pictures))
    recipe = load_recipe(Path(name), (f"image_size={side}",))
    few = {"epochs": 1, "batch_size": 4}
    recipe = recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"weights": None}),
            "float_training": recipe.float_training.model_copy(update=few),
            "stages": tuple(stage.model_copy(update=few) for stage in recipe.stages[-stages:]),
        }
    )
    train(recipe, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["float", *(stage.name for stage in recipe.stages)]
    assert all(np.isfinite(line["loss"]) for line in lines)
    teacher = None if name.endswith("_paper") else "float"
    assert [line.get("teacher") for line in lines] == [None] + [teacher] * stages
    config = read_info(tmp_path / "run" / "w2a2.safetensors").config
    assert config is not None
    assert config.placement == "paper"
    shutil.rmtree(tmp_path / "run")  # gigabytes of AlexNets
