"""The folder of a run: one start at a time writes there, and foreign content is detected."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qil_deploy.checkpoint import read_checkpoint, read_info, save_checkpoint
from qil_deploy.checkpoint.safetensors_file import file_content
from qil_deploy.errors import CheckpointError, ConfigError, DataError, OutputError
from qil_deploy.folder_lock import LOCK_NAME, locked_folder
from qil_deploy.training.models.build import build_model
from qil_deploy.training.recipe import Recipe, recipe_from_dict
from qil_deploy.training.run_state import STATE_NAME
from qil_deploy.training.train import train

from .conftest import train_until_killed


def recipe(**changes: object) -> Recipe:
    stage: dict[str, Any] = {"epochs": 2, "batch_size": 256}
    content = {
        "name": "tiny",
        "data": "digits",
        "train_images": 600,
        "model": {"name": "resnet8", "width": 4},
        "float_training": stage,
        "stages": [stage | {"weight_bits": 4, "activation_bits": 4}],
    }
    return recipe_from_dict(content | changes, "test")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose float phase is finished, killed in the second epoch of the next one."""
    folder = tmp_path_factory.mktemp("runs") / "killed"
    train_until_killed(recipe(), folder, 7)
    return folder


@pytest.fixture
def folder(killed: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    copied = tmp_path / "run"
    copied.mkdir()
    for path in killed.glob("*.*"):
        (copied / path.name).write_bytes(path.read_bytes())
    return copied


def test_the_killed_run_goes_on(folder: Path) -> None:
    (folder / LOCK_NAME).write_text("process 1 on elsewhere since long ago")  # left by the kill
    (folder / ".state-unfinished-abcd1234.safetensors").write_bytes(b"half")
    (folder / "best").mkdir()
    (folder / "best" / ".w4a4-unfinished-abcd1234.safetensors").write_bytes(b"half")
    train(recipe(), folder, resume=True)
    left = sorted(path.name for path in folder.rglob("*") if path.is_file() and "events" not in path.name)
    assert left == ["float.safetensors", "metrics.jsonl", "recipe.json", "w4a4.safetensors", "w4a4.safetensors"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path, resume: bool) -> None:
    with locked_folder(tmp_path):
        before = (tmp_path / LOCK_NAME).read_bytes()
        with pytest.raises(OutputError, match=r"is being written by process \d+ on .*choose another --out"):
            train(recipe(), tmp_path, resume=resume)
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_NAME]
        assert (tmp_path / LOCK_NAME).read_bytes() == before


PROGRAM = """
import sys
from pathlib import Path
from qil_deploy.training import fit
from qil_deploy.training.recipe import Recipe
from qil_deploy.training.train import train

def wait(*_arguments, **_options):
    print("training", flush=True)
    sys.stdin.read()

fit.train_epochs = wait
train(Recipe.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
"""


def test_a_run_holds_its_folder_while_it_trains(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(recipe().model_dump_json())
    folder = tmp_path / "run"
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "recipe.json"), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "training\n"
        with pytest.raises(OutputError, match=f"is being written by process {other.pid} on"):
            train(recipe(), folder)
        other.kill()
    train(recipe(stages=[], float_training={"epochs": 0, "batch_size": 64}), folder)
    assert not (folder / LOCK_NAME).exists()


def test_a_recipe_that_is_damaged_is_another_one(folder: Path) -> None:
    for content in (b"", b"\xff\xfe", b"[" * 10**5):
        (folder / "recipe.json").write_bytes(content)
        with pytest.raises(ConfigError, match="holds a run of another recipe"):
            train(recipe(), folder, resume=True)


def test_damaged_metrics_are_refused_before_training(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    path.write_bytes(b"[]\n" + path.read_bytes())
    with pytest.raises(DataError, match=r"line 1 of .*metrics\.jsonl is damaged \(it is no JSON object\); remove it"):
        train(recipe(), folder, resume=True)
    assert (folder / STATE_NAME).is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "cifar10"}, "its data differs from what the recipe asks for"),
        ({"class_names": tuple("abcdefghij")}, "its class_names differs"),
        ({"model_name": "resnet14"}, "its model_name differs"),
        ({"metrics": {}}, "does not say its accuracy; remove it to train its phase again"),
    ],
)
def test_a_checkpoint_of_another_run_is_not_gone_on_from(folder: Path, change: dict[str, Any], message: str) -> None:
    path = folder / "float.safetensors"
    _, tensors = read_checkpoint(path)
    info = read_info(path).model_copy(update=change)
    path.write_bytes(file_content(tensors, {"qil_deploy": info.model_dump_json()}))
    with pytest.raises(CheckpointError, match=rf"float\.safetensors .*{message}"):
        train(recipe(), folder, resume=True)


def test_a_checkpoint_of_another_kind_is_not_gone_on_from(folder: Path) -> None:
    info = read_info(folder / "float.safetensors")
    model = build_model(info.model_name, info.model_arguments)
    save_checkpoint(folder / "w4a4.safetensors", info, model)
    with pytest.raises(CheckpointError, match=r"w4a4\.safetensors is not of this run: its kind differs"):
        train(recipe(), folder, resume=True)


def changed_state(folder: Path, change: Callable[[dict[str, str], dict[str, torch.Tensor]], None]) -> None:
    """Change the state, and update its digest."""
    from safetensors import safe_open

    path = folder / STATE_NAME
    with safe_open(path, framework="pt") as file:
        metadata = {key: text for key, text in file.metadata().items() if key != "sha256"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no dict
    change(metadata, tensors)
    path.write_bytes(file_content(tensors, metadata))


@pytest.mark.parametrize(
    ("position", "message"),
    [
        (
            {"epoch": 7, "step": 15},
            "step 15, batch 0 of epoch 7, and the phase has 2 epochs of 2",
        ),
        ({"batch": 2, "step": 4}, "has the data set changed"),
        ({"epoch": -1}, "epoch is -1, no count"),
        ({"batch": True}, "batch is True, no count"),
        ({"step": 4}, "it stands at step 4"),
        ({"step": 10**30}, "no count"),
        ({"loss_sum": "1"}, "loss_sum is '1', no finite number"),
        ({"loss_sum": 10**400}, "is not a finite float64 number"),
        ({"right": 10**6}, "1000000 of 0 images are right"),
        ({"best": 101}, "its best accuracy is 101 %"),
        ({"more": 1}, "its position is not an object with the right entries"),
    ],
)
def test_positions_that_no_phase_has_are_refused(folder: Path, position: dict[str, Any], message: str) -> None:
    def change(metadata: dict[str, str], _tensors: dict[str, torch.Tensor]) -> None:
        metadata["position"] = json.dumps(json.loads(metadata["position"]) | position)

    changed_state(folder, change)
    with pytest.raises(
        CheckpointError, match=rf"run state .* is damaged \(.*{message}.*remove it to go on after"
    ) as caught:
        train(recipe(), folder, resume=True)
    assert len(str(caught.value)) < 1000


def drop(prefix: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(prefix)]:
            del tensors[name]

    return change


def put(name: str, tensor: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("optimizer.0."), "it keeps nothing of optimizer 0"),
        (drop("optimizer.1.0.exp_avg_sq"), "optimizer 1 keeps exp_avg, step of its parameter 0"),
        (put("optimizer.0.0.momentum_buffer", torch.zeros(3)), r"'0\.momentum_buffer' of optimizer 0 has shape \[3\]"),
        (put("optimizer.1.0.step", torch.tensor(3)), r"'0\.step' of optimizer 1 has shape \[\] and type torch\.int64"),
        (put("optimizer.0.9999.momentum_buffer", torch.zeros(3)), "optimizer 0 has no parameter 9999"),
        (put("optimizer.0.-1.momentum_buffer", torch.zeros(3)), "optimizer 0 has no parameter -1"),
        (
            put("model.conv1.weight", torch.zeros(4, 1, 3, 3, dtype=torch.int64)),
            "has dtype int64 in the file and float32",
        ),
        (put("model.conv1.weight", torch.zeros(4, 1, 3, 4)), r"has shape \[4, 1, 3, 4\] in the file"),
        (put("model.conv1.weight", torch.full((4, 1, 3, 3), torch.nan)), "has NaN or infinity"),
        (put("model.input_quantizer.scale", torch.tensor(0.5)), "input_quantizer.scale is 0.5, but its config"),
        (drop("model.conv1.weight"), "do not fit its model"),
        (put("model.surplus", torch.zeros(1)), "do not fit its model"),
    ],
)
def test_tensors_that_the_phase_does_not_have_are_refused(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    changed_state(folder, lambda _metadata, tensors: change(tensors))
    with pytest.raises(CheckpointError, match=message):
        train(recipe(), folder, resume=True)


def test_a_flipped_bit_of_the_state_is_noticed(folder: Path) -> None:
    path = folder / STATE_NAME
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for place in (start, (start + len(content)) // 2, len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= 4
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match="its bytes are not those that were written"):
            train(recipe(), folder, resume=True)


def test_a_state_without_a_digest_is_refused(folder: Path) -> None:
    path = folder / STATE_NAME
    path.write_bytes(path.read_bytes().replace(b'"sha256"', b'"sha257"'))
    with pytest.raises(CheckpointError, match="it has no digest, or is not of schema 2"):
        train(recipe(), folder, resume=True)
