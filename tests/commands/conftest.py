"""One tiny run for all tests of commands."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from qil_deploy.checkpoint import load_model, save_checkpoint
from qil_deploy.config import QuantConfig
from qil_deploy.datasets import load_images
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.preparation import prepare
from qil_deploy.training.models.build import build_model

if TYPE_CHECKING:
    from tests.command_line import Outcome

# A minute's recipe cut down to seconds; the accuracy does not matter.
TINY = (
    "model.name=resnet8",
    "model.width=8",
    "float_training.epochs=1",
    "float_training.batch_size=128",
    """stages=[
        {weight_bits=4, activation_bits=4, epochs=1, batch_size=128, frozen_epochs=1},
        {weight_bits=3, activation_bits=3, epochs=1, batch_size=128},
    ]""",
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run."""

    folder: Path
    outcome: Outcome

    @property
    def float(self) -> Path:
        return self.folder / "float.safetensors"

    @property
    def quantized(self) -> Path:
        return self.folder / "w4a4.safetensors"

    @property
    def frozen(self) -> Path:
        return self.folder / "w4a4_frozen.safetensors"


def _options(changes: Sequence[str]) -> list[str]:
    return [part for change in changes for part in ("--set", change)]


@pytest.fixture
def tiny_changes() -> list[str]:
    """Return the options with which the tiny run was started."""
    return _options(TINY)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, call: Callable[..., Outcome]) -> Run:
    """Train a float network, w4a4 with a frozen stage, and w3a3 without."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    outcome = call("train", "digits_resnet14", "--out", folder, *_options(TINY))
    assert outcome.code == 0, outcome.error
    return Run(folder=folder, outcome=outcome)


def paper_checkpoint(run: Run, folder: Path) -> Path:
    """Write the run's float network in `paper` placement with 5 bits, calibrated and not trained."""
    info, network = load_model(run.float, build_model)
    data = load_images("digits")
    x = torch.from_numpy(info.preprocessing.normalize(data.images[:256]))
    config = QuantConfig(weight_bits=5, activation_bits=5, placement="paper")
    prepared = prepare(network, config, x[:1], input_grid=info.preprocessing)
    calibrate(prepared, [x])
    path = folder / "paper.safetensors"
    entry = info.model_copy(update={"kind": "quantized", "config": config})
    save_checkpoint(path, entry, prepared)
    return path


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Return a function that copies a file of the run, for a test to damage."""

    def copy(path: Path) -> Path:
        return Path(shutil.copy(path, tmp_path / path.name))

    return copy
