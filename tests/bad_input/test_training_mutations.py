"""A few of the generated mutations of inputs of training and export: checkpoints, run folders, recipes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qil_deploy.errors import ConfigError
from qil_deploy.training.recipe_file import load_recipe
from qil_deploy.training.train import train
from tests.training.conftest import train_until_killed

from .mutations_of_checkpoints import mutations as mutations_of_checkpoints
from .mutations_of_recipes import mutations as mutations_of_recipes
from .mutations_of_run_folders import mutations as mutations_of_run_folders

if TYPE_CHECKING:
    from tests.command_line import Outcome

RECIPE = """name = "tiny"
data = "digits"
train_images = 300
[model]
name = "resnet8"
width = 4
[float_training]
epochs = 2
batch_size = 150
[[stages]]
weight_bits = 4
activation_bits = 4
epochs = 2
batch_size = 150
frozen_epochs = 1
"""
SEED = 11


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def run(recipe: Path) -> Path:
    """A finished run."""
    folder = recipe.parent / "run"
    train(load_recipe(recipe), folder)
    return folder


@pytest.fixture(scope="module")
def killed_run(recipe: Path) -> Path:
    """A run that was killed in its second phase."""
    folder = recipe.parent / "killed"
    train_until_killed(load_recipe(recipe), folder, 7)
    return folder


@pytest.mark.parametrize("kind", ["float", "w4a4", "w4a4_frozen"])
def test_checkpoints_export_or_are_refused(run: Path, tmp_path: Path, ends: Callable[..., Outcome], kind: str) -> None:
    path, output = tmp_path / "a.safetensors", tmp_path / "a.onnx"
    for name, content in mutations_of_checkpoints((run / f"{kind}.safetensors").read_bytes(), 18, SEED):
        path.write_bytes(content)
        outcome = ends("export", path, "-o", output, "--no-freezing-report")
        assert output.exists() == (outcome.code == 0), name
        assert len(outcome.error) < 1000, name
        assert "\x1b" not in outcome.error, name
        output.unlink(missing_ok=True)


@pytest.mark.parametrize("command", ["sensitivity", "verify"])
def test_checkpoints_are_measured_and_compared_or_refused(
    run: Path, tmp_path: Path, ends: Callable[..., Outcome], command: str
) -> None:
    path, model = tmp_path / "a.safetensors", tmp_path / "good.onnx"
    good = run / "w4a4.safetensors"
    assert ends("export", good, "-o", model, "--no-freezing-report").code == 0
    arguments: dict[str, list[object]] = {
        "sensitivity": [path, "--limit", 4, "--calibration-images", 4, "--bits", 2],
        "verify": [model, "--checkpoint", path, "--limit", 4],
    }
    for name, content in mutations_of_checkpoints(good.read_bytes(), 9, SEED + 1):
        path.write_bytes(content)
        outcome = ends(command, *arguments[command])
        assert len(outcome.error) < 1000, name


def test_run_folders_go_on_or_are_refused(
    recipe: Path, killed_run: Path, tmp_path: Path, ends: Callable[..., Outcome]
) -> None:
    for number, (name, damage) in enumerate(mutations_of_run_folders(killed_run, 20, SEED)):
        folder = tmp_path / str(number)
        shutil.copytree(killed_run, folder)
        damage(folder)
        outcome = ends("train", recipe, "--out", folder, "--resume", "--no-report")
        assert len(outcome.error) < 1000, name
        assert "\x1b" not in outcome.error, name


def test_recipes_are_carried_out_or_refused(
    tmp_path: Path, ends: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Valid recipes are tried (`rehearsal`), but not trained."""

    def claimed_folder(*_arguments: object, **_options: object) -> None:
        raise ConfigError("this could be trained.")

    monkeypatch.setattr("qil_deploy.training.train.claimed_folder", claimed_folder)
    path = tmp_path / "a.toml"
    for number, (name, content) in enumerate(mutations_of_recipes(RECIPE, 66, SEED)):
        path.write_bytes(content)
        outcome = ends("train", path, "--out", tmp_path / str(number), "--no-report")
        assert outcome.code == 2, name
        assert len(outcome.error) < 1000, name
        assert "\x1b" not in outcome.error, name
