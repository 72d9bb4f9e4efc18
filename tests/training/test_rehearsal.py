"""The rehearsal finds untrainable phases before anything is written, and does not affect the training of others."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qil_deploy.errors import CheckpointError, ConfigError, DataError, QilDeployError, TrainingError
from qil_deploy.training import rehearsal
from qil_deploy.training import train as train_module
from qil_deploy.training.data.run_data import RunData
from qil_deploy.training.recipe import Recipe, recipe_from_dict
from qil_deploy.training.run import Run
from qil_deploy.training.train import train

MODULE = """
import sys
import numpy as np
import random
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, channels=1, classes=10):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.hidden, self.hidden_norm = nn.Linear(4, 8), nn.BatchNorm1d(8)
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.fc(torch.relu(self.hidden_norm(self.hidden(x))))

class Changed(Small):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(self, super().forward(x))

def good(in_channels, num_classes): return Small(in_channels, num_classes)
def in_evaluation(in_channels, num_classes): return Small().eval()
def more_logits(in_channels, num_classes): return Small(classes=1000)
def fewer_logits(in_channels, num_classes): return Small(classes=7)
def colour(in_channels, num_classes): return Small(channels=3)
def maps(in_channels, num_classes): return nn.Conv2d(in_channels, num_classes, 3)
def half(in_channels, num_classes): return Small().half()
def frozen(in_channels, num_classes): return Small().requires_grad_(False)
def frozen_body(in_channels, num_classes):
    network = Small().requires_grad_(False)
    network.fc.requires_grad_(True)
    return network
def raises(in_channels, num_classes): raise KeyError("weights")
def ends(in_channels, num_classes): sys.exit(0)
def nothing(in_channels, num_classes): pass
def fails(in_channels, num_classes): return Changed(lambda self, y: y.nowhere)
def a_table(in_channels, num_classes): return Changed(lambda self, y: {"out": y})
def a_pair(in_channels, num_classes): return Changed(lambda self, y: (y, y))
def detached(in_channels, num_classes): return Changed(lambda self, y: y.detach())
def integers(in_channels, num_classes): return Changed(lambda self, y: y.long())
def not_a_number(in_channels, num_classes): return Changed(lambda self, y: y * float("nan"))
def a_root_of_zero(in_channels, num_classes): return Changed(lambda self, y: y + (self.fc.weight * 0).sum().sqrt())
def fewer_in_evaluation(in_channels, num_classes):
    return Changed(lambda self, y: y if self.training else y[:, :3])
def draws(in_channels, num_classes):
    np.random.rand(), random.random(), torch.rand(1)
    return Small()
"""


def recipe(network: str, **changes: object) -> Recipe:
    stage: dict[str, Any] = {"epochs": 1, "batch_size": 256}
    content = {
        "name": "tiny",
        "data": "digits",
        "model": {"name": network},
        "float_training": stage,
        "stages": [stage | {"weight_bits": 4, "activation_bits": 4, "frozen_epochs": 1}],
    }
    return recipe_from_dict(content | changes, "test")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"networks_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (
            "more_logits",
            TrainingError,
            r"float, in training: .* returns float32 of shape \[8, 1000\] for 8 images",
        ),
        (
            "fewer_logits",
            TrainingError,
            r"with the 10 classes of the data set .* floats of shape \[8, 10\]",
        ),
        ("maps", TrainingError, r"returns float32 of shape \[8, 10, 6, 6\]"),
        ("integers", TrainingError, r"returns int64 of shape \[8, 10\]"),
        ("a_table", TrainingError, "returns a dict; one tensor of logits is needed"),
        ("a_pair", TrainingError, "returns a tuple; one tensor of logits is needed"),
        ("fewer_in_evaluation", TrainingError, r"float, in evaluation: .* returns float32 of shape \[8, 3\]"),
        (
            "colour",
            TrainingError,
            r"fails on 8 images of shape \[1, 8, 8\]: RuntimeError: .*3 channels.*\.py, line",
        ),
        ("fails", TrainingError, r"AttributeError: .*nowhere.* \[networks_of_.*\.py, line \d+\]"),
        (
            "half",
            TrainingError,
            r"float: parameter 'conv\.weight' of the network is float16; return it as",
        ),
        ("frozen", TrainingError, r"float: every parameter of the network is frozen .*or set epochs to 0"),
        ("detached", TrainingError, r"float: the logits depend on no parameter that is trained; look for detach"),
        (
            "not_a_number",
            TrainingError,
            r"float: the loss of the first 8 images is nan before any training",
        ),
        ("a_root_of_zero", TrainingError, r"images is finite, but its gradient is not; look for roots"),
        ("raises", ConfigError, r"cannot be built with .*: KeyError: 'weights' \[networks_of_.*\.py, line \d+\]"),
        ("ends", ConfigError, r"cannot be built with .*: SystemExit: 0 \[networks_of"),
        ("nothing", ConfigError, r"returned 'NoneType'; it must return a torch\.nn\.Module"),
    ],
)
def test_what_cannot_be_trained_is_found_before_anything_is_written(
    module: str, folder: Path, function: str, error: type[QilDeployError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        train(recipe(f"{module}:{function}", stages=[]), folder)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)
    assert not folder.exists()


@pytest.mark.parametrize(
    "content", ["def f(:", "import nowhere_at_all", "raise OSError('x')", "import sys; sys.exit(3)"]
)
def test_a_module_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path, content: str
) -> None:
    name = f"broken_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=f"model '{name}:f' cannot be imported"):
        train(recipe(f"{name}:f"), folder)
    assert not folder.exists()


@pytest.mark.parametrize("function", ["good", "in_evaluation", "frozen_body"])
def test_networks_that_can_be_trained_are(module: str, folder: Path, function: str) -> None:
    train(recipe(f"{module}:{function}"), folder)
    assert (folder / "w4a4_frozen.safetensors").is_file()


def test_a_network_that_is_taken_as_it_is_may_be_frozen(module: str, folder: Path) -> None:
    train(recipe(f"{module}:frozen", float_training={"epochs": 0, "batch_size": 256}), folder)


def test_a_stage_is_tried_before_the_float_network_is_trained(
    module: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_model: nn.Module) -> nn.Module:
        raise TrainingError("cannot be frozen.")

    monkeypatch.setattr(rehearsal, "freeze", broken)
    with pytest.raises(TrainingError, match="cannot be frozen"):
        train(recipe(f"{module}:good"), folder)
    assert not folder.exists()


def test_one_image_per_batch_where_batchnorm_sees_single_values(module: str, folder: Path) -> None:
    single = {"epochs": 1, "batch_size": 1}
    changes: dict[str, Any] = {"train_images": 3, "stages": []}
    with pytest.raises(TrainingError, match=r"fails on one image of .*BatchNorm may see single values"):
        train(recipe(f"{module}:good", float_training=single, **changes), folder)
    assert not folder.exists()
    train(recipe("resnet8", float_training=single, **changes), folder)


def test_a_batch_that_is_too_large_is_found_in_whichever_stage_it_is(folder: Path) -> None:
    stage = {"epochs": 1, "batch_size": 10**6, "weight_bits": 4, "activation_bits": 4}
    with pytest.raises(ConfigError, match="batch_size is 1000000, but the training set has only 1437 images"):
        train(recipe("resnet8", stages=[stage]), folder)
    assert not folder.exists()


def stages_of(second: dict[str, Any], overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return changes of a recipe: a stage of 4 bits, followed by one of 3."""
    stage: dict[str, Any] = {"epochs": 0, "batch_size": 256}
    four, three = ({"weight_bits": bits, "activation_bits": bits} for bits in (4, 3))
    return {
        "float_training": stage,
        "stages": [stage | four | {"calibration_batches": 2}, stage | three | second],
        "overrides": overrides or {},
    }


@pytest.mark.parametrize(
    ("second", "overrides"),
    [
        ({}, None),
        ({"overrides": {"layer2.0.conv1": {"weight_bits": 5}}}, None),
        ({}, {"layer2.0.conv1": {"weight_bits": 5}}),
    ],
)
def test_calibration_batches_where_nothing_is_calibrated(
    folder: Path, second: dict[str, Any], overrides: dict[str, Any] | None
) -> None:
    changes = stages_of(second | {"calibration_batches": 3}, overrides)
    with pytest.raises(
        ConfigError,
        match=r"^w3a3: calibration_batches is 3, but the stage takes every interval over from w4a4, the stage before, "
        r"and calibrates nothing; leave the key out, or set from_float = true\.$",
    ):
        train(recipe("resnet8", **changes), folder)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("second", "overrides"),
    [
        ({"from_float": True, "calibration_batches": 3}, None),
        ({"calibration_batches": 8}, None),
        ({"overrides": {"layer2.0.downsample.0": {"activation_bits": 5}}, "calibration_batches": 3}, None),
        ({"calibration_batches": 3}, {"layer2.0.downsample.0": {"activation_bits": 4}}),
    ],
    ids=["from float", "the default", "other overrides", "the same overrides, equal to the bits of one stage alone"],
)
def test_calibration_batches_of_a_stage_behind_another(
    folder: Path, second: dict[str, Any], overrides: dict[str, Any] | None
) -> None:
    train(recipe("resnet8", **stages_of(second, overrides)), folder)
    assert (folder / "w3a3.safetensors").is_file()


def test_a_network_larger_than_memory_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"training resnet8 with .*65536.* would take .* GB, and this machine has"):
        train(recipe("resnet8", model={"name": "resnet8", "width": 65536}), folder)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("label", [-1, 10])
def test_labels_that_are_no_class(folder: Path, monkeypatch: pytest.MonkeyPatch, split: str, label: int) -> None:
    load = Run.__init__

    def with_wrong_label(self: Any, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - of Run
        load(self, *arguments, **options)
        data: RunData = self.data
        getattr(data, split).labels[5] = label

    monkeypatch.setattr(Run, "__init__", with_wrong_label)
    with pytest.raises(DataError, match=rf"labels of the {split}\w* images go from .*, but there are 10 classes"):
        train(recipe("resnet8"), folder)
    assert not folder.exists()


def test_weights_to_start_from_are_looked_at_first(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth do not exist"):
        train(recipe("resnet8", model={"name": "resnet8", "weights": str(tmp_path / "none.pth")}), folder)
    assert not folder.exists()


def random_state() -> list[object]:
    legacy = np.random.get_state()  # noqa: NPY002 - what a network of the user's may draw from
    return [random.getstate(), str(legacy), torch.get_rng_state().tolist()]


def test_nothing_is_left_of_a_rehearsal(module: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run after a rehearsal ends with the same bytes, draws the same numbers, and sees the same statistics."""
    states: list[object] = []
    rehearse = rehearsal.rehearse

    def watched(run: Any) -> None:  # noqa: ANN401 - a Run
        states.append(random_state())
        rehearse(run)
        states.append(random_state())

    monkeypatch.setattr(train_module, "rehearse", watched)
    train(recipe(f"{module}:draws"), folder)
    assert states[0] == states[1]
    monkeypatch.setattr(train_module, "rehearse", lambda _run: None)
    untried = folder.with_name("untried")
    train(recipe(f"{module}:draws"), untried)
    for path in sorted(folder.glob("*.safetensors")):
        assert path.read_bytes() == (untried / path.name).read_bytes(), path.name


def test_finished_phases_are_not_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(recipe("resnet8"), folder)
    tried: list[str] = []
    true_try: Callable[..., None] = rehearsal._try

    def watched(run: Any, trial: Any) -> None:  # noqa: ANN401 - as in the module
        tried.append(trial.phase)
        true_try(run, trial)

    monkeypatch.setattr(rehearsal, "_try", watched)
    train(recipe("resnet8"), folder, resume=True)
    assert tried == []
    (folder / "w4a4_frozen.safetensors").unlink()
    train(recipe("resnet8"), folder, resume=True)
    assert tried == ["w4a4_frozen"]
