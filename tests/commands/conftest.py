"""The command line, called in this process, and one tiny run for all tests."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from qil_deploy.calibration import calibrate
from qil_deploy.checkpoint import load_model, save_checkpoint
from qil_deploy.commands import main
from qil_deploy.config import QuantConfig
from qil_deploy.datasets import load_images
from qil_deploy.preparation import prepare
from qil_deploy.training.models import build_model

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
class Outcome:
    """What a command printed and how it ended; lines are joined, for where they break means nothing."""

    code: object
    out: str
    error: str


def _call(*arguments: object) -> Outcome:
    """Run the command line; an error that is not ours passes through."""
    out, error = io.StringIO(), io.StringIO()
    code: object = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as ending:
            code = ending.code
    return Outcome(code=code, out=" ".join(out.getvalue().split()), error=error.getvalue())


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
    """Return the options that the tiny run was started with."""
    return _options(TINY)


@pytest.fixture
def call() -> Callable[..., Outcome]:
    """Return a function that runs the command line."""
    return _call


@pytest.fixture(scope="session", autouse=True)
def _wide_terminal() -> Iterator[None]:
    """Tables and paths are not broken into lines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "400")
        yield


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train a float network, w4a4 with a frozen stage, and w3a3 without."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    outcome = _call("train", "digits_resnet14", "--out", folder, *_options(TINY))
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
    """Return a function that copies a file of the run to where a test may damage it."""

    def copy(path: Path) -> Path:
        return Path(shutil.copy(path, tmp_path / path.name))

    return copy


@pytest.fixture
def refused() -> Callable[..., str]:
    """Return a function that runs a command, requires one sentence and exit code 2, and returns the sentence."""

    def refuse(*arguments: object, printed: bool = False) -> str:
        outcome = _call(*arguments)
        assert outcome.code == 2, (outcome, arguments)
        assert printed or outcome.out == ""
        assert outcome.error.startswith("Error: ")
        assert "Traceback" not in outcome.error
        sentence = outcome.error.removeprefix("Error: ").removesuffix("\n")
        assert "\n" not in sentence
        assert sentence.endswith("."), sentence
        return sentence

    return refuse
