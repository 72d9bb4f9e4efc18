"""Networks of the user: built when the user names them, never because a checkpoint does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from qil_deploy.checkpoint import CheckpointInfo, load_model, save_checkpoint
from qil_deploy.errors import ConfigError
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.training.models.build import build_model, model_builder

ARGUMENTS = {"in_channels": 1, "num_classes": 3}
MODULE = """
from pathlib import Path
from torch import nn

Path(__file__).with_suffix(".imported").touch()

def small(in_channels, num_classes):
    return nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, num_classes))

def wrong(in_channels, num_classes):
    return "no network"

def other(channels):
    return nn.Identity()

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module, new for each test, that records its import."""
    name = f"networks_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.fixture
def checkpoint(tmp_path: Path, module: str) -> Path:
    """A float checkpoint whose network `small` builds."""
    path = tmp_path / "float.safetensors"
    info = CheckpointInfo(
        kind="float",
        model_name=f"{module}:small",
        model_arguments=ARGUMENTS,
        config=None,
        preprocessing=Preprocessing(channels=1, height=8, width=8, scale=0.01, zero_point=0),
        data="digits",
        class_names=("a", "b", "c"),
        metrics={},
    )
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 3))
    save_checkpoint(path, info, network)
    return path


def test_what_the_user_names_is_built(module: str) -> None:
    model = model_builder(f"{module}:small")(f"{module}:small", ARGUMENTS)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


def test_networks_of_the_table_need_no_trust() -> None:
    for trusted in (None, "resnet8", "some:thing"):
        assert isinstance(model_builder(trusted)("resnet8", ARGUMENTS), nn.Module)


@pytest.mark.parametrize("trusted", [None, "resnet8", "another:small"])
def test_a_checkpoint_runs_no_code_that_the_user_did_not_name(
    checkpoint: Path, module: str, tmp_path: Path, trusted: str | None
) -> None:
    with pytest.raises(ConfigError, match=rf"'{module}:small', which is code outside .* name it yourself: --model"):
        load_model(checkpoint, model_builder(trusted))
    with pytest.raises(ConfigError, match="code outside this project"):
        load_model(checkpoint, build_model)
    assert not (tmp_path / f"{module}.imported").exists()


def test_a_checkpoint_is_loaded_with_the_name_that_the_user_trusts(checkpoint: Path, module: str) -> None:
    info, model = load_model(checkpoint, model_builder(f"{module}:small"))
    assert info.model_name == f"{module}:small"
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (":small", "must be MODULE:FUNCTION, for example"),
        ("{}:", "must be MODULE:FUNCTION"),
        ("{}:small()", "must be MODULE:FUNCTION"),
        ("no_such_module_anywhere:small", "cannot be imported .*; install its module, or start"),
        ("{}:large", "has no function 'large'"),
        ("{}:number", "has no function 'number'"),
        ("{}:wrong", r"returned 'str'; it must return a torch\.nn\.Module"),
        ("{}:other", "cannot be built with .*in_channels"),
    ],
)
def test_names_that_build_nothing_are_refused(module: str, name: str, message: str) -> None:
    name = name.format(module)
    with pytest.raises(ConfigError, match=message) as caught:
        model_builder(name)(name, ARGUMENTS)
    assert "\n" not in str(caught.value)


def test_only_names_of_known_form_can_be_trusted() -> None:
    with pytest.raises(ConfigError, match=r"unknown model 'resnet19'; known are resnet8, .*, and MODULE:FUNCTION"):
        model_builder("resnet19")
