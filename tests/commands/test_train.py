"""`train`: a run from the command line, resumed, and refused before any work if it cannot succeed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from qil_deploy.checkpoint import read_checkpoint
from qil_deploy.training.models import build as models

if TYPE_CHECKING:
    from tests.command_line import Outcome
    from tests.commands.conftest import Run

Refused = Callable[..., str]


def test_a_run_prints_its_accuracies_and_leaves_its_files(run: Run) -> None:
    names = ["float", "w3a3", "w4a4", "w4a4_frozen"]
    assert sorted(path.stem for path in run.folder.glob("*.safetensors")) == names
    for name in names:
        info, _ = read_checkpoint(run.folder / f"{name}.safetensors")
        assert f"{info.metrics['accuracy']:.2f}" in run.outcome.out
    assert "w4a4_frozen epoch 0: loss" in run.outcome.out
    assert f"Checkpoints and metrics are in {run.folder}; curves: tensorboard --logdir" in run.outcome.out
    assert run.outcome.out.endswith(f"Intervals, shares and confusions are in {run.folder / 'report.html'}.")
    assert run.outcome.error == ""
    assert sorted(path.stem for path in (run.folder / "best").iterdir()) == names
    assert list((run.folder / "curves" / "w4a4").iterdir())
    assert "w4a4_frozen" in (run.folder / "report.html").read_text()
    assert len((run.folder / "metrics.jsonl").read_text().splitlines()) == 4
    assert json.loads((run.folder / "recipe.json").read_text())["model"]["width"] == 8


def test_a_finished_run_is_not_overwritten_and_resumes_at_its_end(
    run: Run, call: Callable[..., Outcome], refused: Refused, tiny_changes: list[str]
) -> None:
    def files() -> dict[str, bytes]:
        kept = [*run.folder.rglob("*.safetensors"), run.folder / "metrics.jsonl", run.folder / "recipe.json"]
        return {str(path): path.read_bytes() for path in kept}

    before = files()
    arguments = ("train", "digits_resnet14", "--out", run.folder, *tiny_changes)
    assert "already holds a run; continue it with --resume or choose another --out" in refused(*arguments)
    outcome = call(*arguments, "--resume")
    assert outcome.code == 0
    assert "epoch" not in outcome.out
    assert files() == before


def test_the_folder_is_by_default_named_after_the_recipe(
    call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = ("--set", "float_training.epochs=0", "--set", "stages=[]", "--set", "name=quick")
    assert call("train", "digits_resnet14", *changes, "--threads", "1").code == 0
    assert (tmp_path / "runs" / "quick" / "float.safetensors").is_file()


def test_memory_is_kept_before_training_begins(
    call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BegunError(Exception):
        pass

    def begin(*_: object, **__: object) -> None:
        raise BegunError(told)

    told: list[str] = []
    monkeypatch.setattr("qil_deploy.training.freed_memory.keep_freed_memory", lambda: told.append("kept"))
    monkeypatch.setattr("qil_deploy.training.train.train", begin)
    for arguments in (("train", "digits_resnet14", "--out", tmp_path / "run"), ("demo", "--out", tmp_path / "demo")):
        with pytest.raises(BegunError, match="kept"):
            call(*arguments)
        told.clear()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data=imagenot"], "unknown data set 'imagenot': it is none of ['cifar10', "),
        (["stages.0.weight_bits=1"], "weight_bits: Input should be greater than or equal to 2 (found 1)"),
        (["stages.0.activation_bits=9"], "activation_bits: Input should be less than or equal to 8 (found 9)"),
        (["stages.0.weight_bits=8", "stages.0.activation_bits=8"], "use at most 7 bits for one of them"),
        (["overrides={'layer9.*'={weight_bits=3}}"], "override 'layer9.*' matches no layer; the layers are conv1, "),
        (["overrides={fc={activation_bits=4}}"], "layer fc: activation_bits=4, but the first and last layers"),
        (["model.name=resnet9"], "unknown model 'resnet9'; known are resnet8, "),
        (["stages.9.epochs=1"], "the recipe has no 'stages.9.epochs'"),
        (["epochs=1"], "epochs: there is no such key (found 1)"),
        (["seed"], "must be key=value, for example seed=1"),
        (["float_training.batch_size=5000"], "batch_size is 5000, but the training set has only 1437 images"),
        (["float_training.learning_rate=0"], "learning_rate: Input should be greater than 0 (found 0)"),
    ],
)
def test_what_cannot_be_carried_out_is_refused_before_training(
    changes: list[str], message: str, refused: Refused, tmp_path: Path
) -> None:
    options = [part for change in changes for part in ("--set", change)]
    assert message in refused("train", "digits_resnet14", "--out", tmp_path / "run", *options)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_missing_and_damaged_recipes(refused: Refused, tmp_path: Path) -> None:
    sentence = refused("train", tmp_path / "absent.toml")
    assert "absent.toml cannot be read" in sentence
    assert "shipped recipes: cifar10_resnet20, digits_resnet14, fashion_mnist_alexnet" in sentence
    (tmp_path / "bad.toml").write_text("name = ")
    assert "bad.toml is not valid TOML" in refused("train", tmp_path / "bad.toml")
    (tmp_path / "short.toml").write_text('name = "short"')
    assert "data: this key is missing" in refused("train", tmp_path / "short.toml")


def test_an_output_below_a_file_is_refused(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot write" in refused("train", "digits_resnet14", "--out", tmp_path / "file" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_empty_image_folders_are_refused(refused: Refused, tmp_path: Path) -> None:
    data = tmp_path / "images"
    data.mkdir()
    arguments = ("train", "digits_resnet14", "--out", tmp_path / "run", "--set", f"data='{data}'")
    assert "has no subfolder train" in refused(*arguments)
    (data / "train" / "cat").mkdir(parents=True)
    (data / "train" / "cat" / "notes.txt").write_text("no image")
    assert f"image folder {data / 'train'} holds no images; expected" in refused(*arguments)
    assert not (tmp_path / "run").exists()


class Sinusoidal(nn.Module):
    """A network with an operation that has no integer form."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(144, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.flatten(torch.sin(self.conv(x)), 1))
        return logits


def test_a_network_that_cannot_be_lowered_is_refused_before_training(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.MODELS, "sinusoidal", lambda **_: Sinusoidal())
    arguments = ("train", "digits_resnet14", "--out", tmp_path / "run", "--set", "model.name=sinusoidal")
    sentence = refused(*arguments)
    assert "operation 'sin' (test_train.py, line " in sentence
    assert ") cannot be lowered; supported are Conv2d" in sentence
    assert not list(tmp_path.rglob("*.safetensors"))
