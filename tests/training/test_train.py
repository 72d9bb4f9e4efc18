"""A tiny complete run on the digits: its files, resuming it, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import fx

from qil_deploy.checkpoint import load_model, read_checkpoint
from qil_deploy.datasets import load_images
from qil_deploy.errors import CheckpointError, ConfigError, DataError, OutputError, TrainingError
from qil_deploy.integers.freeze_model import freeze
from qil_deploy.integers.freezing_report import predictions
from qil_deploy.integers.frozen_layer import FrozenLayer
from qil_deploy.training.models.build import build_model
from qil_deploy.training.recipe import Recipe, recipe_from_dict
from qil_deploy.training.train import RunResult, train

from .conftest import accuracy

FILES = ["float", "w4a4", "w2a2", "w2a2_frozen"]


def recipe(**changes: object) -> Recipe:
    content: dict[str, Any] = {
        "name": "tiny",
        "data": "digits",
        "seed": 3,
        "model": {"name": "resnet8", "width": 4},
        "augmentation": {"flip": True, "shift": 1},
        "float_training": {"epochs": 1, "batch_size": 64},
        "stages": [
            {"weight_bits": 4, "activation_bits": 4, "epochs": 1, "batch_size": 128},
            {"weight_bits": 2, "activation_bits": 2, "epochs": 1, "batch_size": 128, "frozen_epochs": 1},
        ],
    }
    return recipe_from_dict(content | changes, "test")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return folder, train(recipe(), folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_a_run_leaves_its_checkpoints_and_one_line_per_epoch(finished: tuple[Path, RunResult]) -> None:
    folder, _ = finished
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*(f"{name}.safetensors" for name in FILES), "best", "curves", "metrics.jsonl", "recipe.json"]
    )
    assert sorted(path.stem for path in (folder / "best").iterdir()) == sorted(FILES)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == FILES
    assert all(line["epoch"] == 0 and line["loss"] > 0 for line in lines)


def test_checkpoints_say_what_they_are(finished: tuple[Path, RunResult]) -> None:
    folder, result = finished
    information = {name: read_checkpoint(folder / f"{name}.safetensors")[0] for name in FILES}
    assert [information[name].kind for name in FILES] == ["float", "quantized", "quantized", "frozen"]
    assert information["float"].config is None
    config = information["w2a2_frozen"].config
    assert config is not None
    assert (config.weight_bits, config.activation_bits) == (2, 2)
    for info in information.values():
        assert info.class_names == tuple("0123456789")
        assert info.model_arguments == {"in_channels": 1, "num_classes": 10, "width": 4}
    last = result.stages[-1]
    assert last.frozen == folder / "w2a2_frozen.safetensors"
    metrics = information["w2a2_frozen"].metrics
    changed = [metrics.pop(name) for name in ("changed_predictions_at_once", "changed_predictions")]
    assert metrics == {
        "accuracy": last.frozen_accuracy,
        "accuracy_before_freezing": last.accuracy,
        "accuracy_frozen_at_once": last.frozen_at_once,
        "test_images": 360,
    }
    models = {name: load_model(folder / f"{name}.safetensors", build_model) for name in ("w2a2", "w2a2_frozen")}
    images = load_images("digits", "test").images
    info, unfrozen = models["w2a2"]
    assert isinstance(unfrozen, fx.GraphModule)
    before, at_once, after = (
        predictions(model, images, info.preprocessing)
        for model in (unfrozen, freeze(unfrozen), models["w2a2_frozen"][1])
    )
    assert changed == [(before != at_once).sum(), (before != after).sum()]
    assert result.stages[0].frozen is None


@pytest.mark.parametrize("name", FILES)
def test_the_accuracy_in_a_checkpoint_is_that_of_its_model(finished: tuple[Path, RunResult], name: str) -> None:
    folder, _ = finished
    info, model = load_model(folder / f"{name}.safetensors", build_model)
    assert accuracy(model, load_images("digits", "test"), info.preprocessing) == info.metrics["accuracy"]


def test_the_frozen_model_was_trained_on(finished: tuple[Path, RunResult]) -> None:
    folder, _ = finished
    _, before = read_checkpoint(folder / "w2a2.safetensors")
    _, frozen = load_model(folder / "w2a2_frozen.safetensors", build_model)
    assert isinstance(frozen, fx.GraphModule)
    layer = frozen.get_submodule("layer1.0.conv1")
    assert isinstance(layer, FrozenLayer)
    assert not torch.equal(layer.layer.weight, before["layer1.0.conv1.weight"])
    assert set(layer.weight_codes.unique().tolist()) == {-1, 0, 1}


@pytest.mark.parametrize("kept", [0, 1, 2, 3, 4])
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    finished: tuple[Path, RunResult], tmp_path: Path, kept: int
) -> None:
    folder, result = finished
    for name in FILES[:kept]:
        shutil.copy(folder / f"{name}.safetensors", tmp_path)
    resumed = train(recipe(), tmp_path, resume=True)
    assert contents(tmp_path) == contents(folder)
    assert [stage.accuracy for stage in resumed.stages] == [stage.accuracy for stage in result.stages]
    assert resumed.stages[-1].frozen_accuracy == result.stages[-1].frozen_accuracy
    metrics = tmp_path / "metrics.jsonl"
    phases = [json.loads(line)["phase"] for line in metrics.read_text().splitlines()] if metrics.exists() else []
    assert phases == FILES[kept:]


def test_a_used_folder_is_refused(finished: tuple[Path, RunResult]) -> None:
    folder, _ = finished
    before = contents(folder)
    with pytest.raises(ConfigError, match=r"already holds a run; continue it with --resume or choose another --out"):
        train(recipe(), folder)
    assert contents(folder) == before


def test_resuming_with_another_network_is_refused(finished: tuple[Path, RunResult], tmp_path: Path) -> None:
    shutil.copy(finished[0] / "float.safetensors", tmp_path)
    with pytest.raises(CheckpointError, match=r"the tensors of .*float\.safetensors do not fit its model"):
        train(recipe(model={"name": "resnet8", "width": 5}), tmp_path, resume=True)


def test_resuming_with_another_recipe_is_refused(finished: tuple[Path, RunResult], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    with pytest.raises(ConfigError, match=r"holds a run of another recipe \(see recipe\.json\); choose another --out"):
        train(recipe(seed=4), folder, resume=True)
    assert contents(folder) == contents(finished[0])


def test_resuming_from_a_damaged_checkpoint_is_refused(finished: tuple[Path, RunResult], tmp_path: Path) -> None:
    content = (finished[0] / "float.safetensors").read_bytes()
    (tmp_path / "float.safetensors").write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="is damaged or truncated"):
        train(recipe(), tmp_path, resume=True)


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*run.*Choose a folder that you may write to"):
        train(recipe(), tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": "mnist"}, DataError, "unknown data set 'mnist'"),
        ({"model": {"name": "resnet9"}}, ConfigError, "unknown model 'resnet9'; known are resnet8, resnet14"),
        (
            {"float_training": {"epochs": 1, "batch_size": 5000}},
            ConfigError,
            "batch_size is 5000, but the training set",
        ),
        ({"overrides": {"layer9": {"weight_bits": 3}}}, ConfigError, "override 'layer9' matches no layer"),
    ],
)
def test_impossible_recipes_are_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    quick = {"float_training": {"epochs": 0, "batch_size": 64}}
    with pytest.raises(error, match=message):
        train(recipe(**(quick | changes)), tmp_path)


def test_divergence_leaves_no_checkpoint_of_its_phase(tmp_path: Path) -> None:
    changes = {"float_training": {"epochs": 3, "batch_size": 64, "learning_rate": 1e30}}
    with pytest.raises(TrainingError, match=r"float: the loss is (nan|inf) at batch \d+ of epoch 0: .* not finite"):
        train(recipe(**changes), tmp_path)
    assert contents(tmp_path) == {}


def test_a_run_in_paper_placement(tmp_path: Path) -> None:
    stages = [{"weight_bits": 3, "activation_bits": 3, "epochs": 1, "batch_size": 128}]
    result = train(recipe(placement="paper", stages=stages), tmp_path)
    assert sorted(contents(tmp_path)) == ["float", "w3a3"]
    info, model = load_model(result.stages[0].checkpoint, build_model)
    assert info.config is not None
    assert info.config.placement == "paper"
    assert accuracy(model, load_images("digits", "test"), info.preprocessing) == result.stages[0].accuracy


def test_a_stage_takes_over_what_it_can_where_its_bits_make_another_graph(tmp_path: Path) -> None:
    stage: dict[str, Any] = {"epochs": 0, "batch_size": 128}
    bits = {"layer2.0.downsample.0": {"weight_bits": 6, "activation_bits": 6}}
    stages = [
        stage | {"weight_bits": 4, "activation_bits": 4},
        stage | {"weight_bits": 3, "activation_bits": 3, "overrides": bits},
    ]
    train(recipe(stages=stages), tmp_path)
    (before, four), (after, three) = (read_checkpoint(tmp_path / f"{name}.safetensors") for name in ("w4a4", "w3a3"))
    assert before.config is not None
    assert after.config is not None
    assert before.config.overrides != after.config.overrides
    assert four.keys() != three.keys()
    common = [name for name in four if name in three and "interval" in name]
    assert len(common) >= 4
    assert all(torch.equal(four[name], three[name]) for name in common)
    assert all(torch.equal(four[name], three[name]) for name in four if name.endswith("weight"))


def test_classes_of_training_and_test_images_must_agree(tmp_path: Path) -> None:
    for split, names in (("train", "abc"), ("test", "ac")):
        for name in names:
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (8, 8), (40 * index, 0, 0)).save(folder / f"{index}.png")
    changes = {
        "data": str(tmp_path / "images"),
        "augmentation": {},
        "float_training": {"epochs": 0, "batch_size": 4},
        "stages": [],
    }
    with pytest.raises(DataError, match=r"training images have the classes a, b, c, .*test images a, c"):
        train(recipe(**changes), tmp_path / "run")
