"""A run that is killed at any moment resumes to the same weights, bit for bit."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qil_deploy.config import QuantConfig
from qil_deploy.errors import CheckpointError, OutputError
from qil_deploy.network import calibrate, prepare
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import interval_parameters
from qil_deploy.training import run_state, weight_parameters
from qil_deploy.training.models.build import build_model
from qil_deploy.training.optimizers import make_optimizers, output_parameters
from qil_deploy.training.phase_record import PhaseRecord
from qil_deploy.training.recipe import Recipe, recipe_from_dict
from qil_deploy.training.recipe_sections import OptimizerSection
from qil_deploy.training.run import Settings
from qil_deploy.training.run_state import Learner, Position, load_state, save_state
from qil_deploy.training.train import train

from .conftest import train_until_killed

PIXELS = Preprocessing(channels=1, height=8, width=8, scale=0.0123, zero_point=77)
FILES = ["float", "w4a4", "w2a2", "w2a2_frozen"]


def recipe() -> Recipe:
    """Every kind of phase, with dropout, gamma, a moving average, estimated BatchNorm and oscillating weights."""
    stage: dict[str, Any] = {"epochs": 2, "batch_size": 256}
    freeze = {"oscillation": "freeze", "oscillation_momentum": 0.3, "oscillation_threshold": (0.2, 0.2)}
    content = {
        "name": "tiny",
        "data": "digits",
        "train_gamma": True,
        "model": {"name": "resnet8", "width": 4},
        "augmentation": {"flip": True, "shift": 1},
        "float_training": stage | {"average": 0.5, "batchnorm_batches": 2},
        "stages": [
            stage | freeze | {"weight_bits": 4, "activation_bits": 4, "learning_rate": 0.1},
            stage
            | {"weight_bits": 2, "activation_bits": 2, "frozen_epochs": 2, "oscillation": "dampen", "average": 0.5},
        ],
    }
    return recipe_from_dict(content, "test")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    train(recipe(), folder)
    return folder


def require_same(folder: Path, expected: Path) -> None:
    for name in FILES:
        assert (folder / f"{name}.safetensors").read_bytes() == (expected / f"{name}.safetensors").read_bytes(), name

    def lines(path: Path) -> list[dict[str, Any]]:
        entries = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]

    assert lines(folder) == lines(expected)
    assert sum(line.get("frozen_weights", 0) > 0 for line in lines(folder)) == 2
    assert not (folder / run_state.STATE_NAME).exists()


def test_what_is_kept_stands_inside_an_epoch_or_at_the_start_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state at the end of an epoch, before it is evaluated, would be refused as one of other data."""
    kept: list[int] = []
    monkeypatch.setattr(PhaseRecord, "save", lambda _record, position: kept.append(position.batch))
    train(recipe(), tmp_path / "run", settings=Settings(save_minutes=0))
    assert set(kept) == {0, 1, 2, 3, 4}


# 5 steps an epoch, 10 a phase: in an epoch, at its end, in each kind of phase.
@pytest.mark.parametrize("step", [1, 6, 10, 13, 25, 34])
def test_a_run_goes_on_from_any_step(uninterrupted: Path, tmp_path: Path, step: int) -> None:
    train_until_killed(recipe(), tmp_path / "run", step)
    train(recipe(), tmp_path / "run", resume=True)
    require_same(tmp_path / "run", uninterrupted)


def test_a_finished_run_says_so(uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    train(recipe(), tmp_path / "run", resume=True)
    assert capsys.readouterr().out.strip().endswith("Finished before: float, w4a4, w2a2, w2a2_frozen.")


def test_a_killed_process_goes_on(uninterrupted: Path, tmp_path: Path) -> None:
    source, folder = tmp_path / "recipe.json", tmp_path / "run"
    source.write_text(recipe().model_dump_json())
    program = (
        "import sys; from pathlib import Path; from qil_deploy.training.recipe import Recipe;"
        "from qil_deploy.training.run import Settings; from qil_deploy.training.train import train;"
        "train(Recipe.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), resume=True,"
        "      settings=Settings(save_minutes=0))"
    )
    command = [sys.executable, "-c", program, str(source), str(folder)]
    kills = 0
    for delay in (0.0, 0.05, 0.3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while process.poll() is None and not (folder / run_state.STATE_NAME).exists():
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 2
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    require_same(folder, uninterrupted)


def learner() -> Learner:
    torch.manual_seed(0)
    model = build_model("resnet8", {"in_channels": 1, "num_classes": 10, "width": 4})
    return Learner(model=model, optimizers=make_optimizers(model, OptimizerSection(epochs=1)))


def test_a_full_disk_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(tmp_path, "float", Position(epoch=1), learner())
    before = (tmp_path / run_state.STATE_NAME).read_bytes()

    def full(_path: Path, _content: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OutputError, match="No space left on device"):
            save_state(tmp_path, "float", Position(epoch=2), learner())
    assert (tmp_path / run_state.STATE_NAME).read_bytes() == before
    assert load_state(tmp_path, "float", learner()) == Position(epoch=1)
    assert [path.name for path in tmp_path.iterdir()] == [run_state.STATE_NAME]


def test_a_state_of_another_phase_or_none_is_no_position(tmp_path: Path) -> None:
    assert load_state(tmp_path, "float", learner()) is None
    save_state(tmp_path, "float", Position(), learner())
    assert load_state(tmp_path, "w4a4", learner()) is None


@pytest.mark.parametrize("keep", [0, 7, 1000, -1])
def test_a_damaged_state_is_refused(tmp_path: Path, keep: int) -> None:
    save_state(tmp_path, "float", Position(), learner())
    path = tmp_path / run_state.STATE_NAME
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"is damaged .* remove it to go on after the last finished phase"):
        load_state(tmp_path, "float", learner())


def test_a_state_of_another_network_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, "float", Position(), learner())
    other = build_model("resnet8", {"in_channels": 1, "num_classes": 10, "width": 5})
    with pytest.raises(CheckpointError, match="do not fit its model"):
        load_state(tmp_path, "float", Learner(model=other, optimizers=[]))


def test_the_middle_of_a_quantized_phase_is_refused_where_output_scales_learned_with_the_weights(
    tmp_path: Path,
) -> None:
    """As in earlier versions; float phases save the same state for both."""
    model = prepare(learner().model.eval(), QuantConfig(), torch.zeros(1, 1, 8, 8), input_grid=PIXELS)
    calibrate(model, [torch.randn(16, 1, 8, 8)])
    weights = weight_parameters(model) + output_parameters(model)
    groups = [[p for p in weights if p.ndim >= 2], [p for p in weights if p.ndim < 2]]
    sgd = torch.optim.SGD([{"params": group} for group in groups], lr=0.1, momentum=0.9)
    before = Learner(model=model, optimizers=[sgd, torch.optim.Adam(interval_parameters(model))])
    model.train()(torch.randn(16, 1, 8, 8)).sum().backward()
    for optimizer in before.optimizers:
        optimizer.step()
    save_state(tmp_path, "w4a4", Position(step=1, batch=1), before)
    now = Learner(model=model, optimizers=make_optimizers(model, OptimizerSection(epochs=1)))
    with pytest.raises(
        CheckpointError, match=r"has no parameter \d+\); remove it to go on after the last finished phase"
    ):
        load_state(tmp_path, "w4a4", now)


def test_a_state_holds_what_its_docstring_says(tmp_path: Path) -> None:
    kept = learner()
    sum(parameter.sum() for parameter in kept.model.parameters()).backward()  # type: ignore[union-attr]  # not empty
    kept.optimizers[0].step()
    save_state(tmp_path, "float", Position(), kept)
    names = set(load_file(tmp_path / run_state.STATE_NAME))
    parameters = len(list(kept.model.parameters()))
    assert {f"model.{name}" for name in kept.model.state_dict()} <= names
    assert {f"optimizer.0.{index}.momentum_buffer" for index in range(parameters)} <= names
