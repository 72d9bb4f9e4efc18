"""A small real model to damage, images for it, and limits on time and memory."""

from __future__ import annotations

import json
import resource
import signal
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from PIL import Image

from qil_deploy.runtime_tests.golden import write_golden

if TYPE_CHECKING:
    from tests.command_line import Outcome

ZOO = Path(__file__).parents[2] / "zoo" / "fashion_mnist"
CLASSES = tuple(string.ascii_lowercase[:10])
SECONDS = 120
GIGABYTES = 12


@pytest.fixture(autouse=True)
def _watch() -> Iterator[None]:
    """Fail a test that hangs, or allocates without limit."""

    def give_up(*_: object) -> None:
        raise AssertionError(f"no end after {SECONDS} seconds")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def content() -> bytes:
    """Return ResNet-20 with 2 bits, with names of classes that a folder may have."""
    model = onnx.load(ZOO / "w2a2.onnx")
    edit_metadata(model, class_names=list(CLASSES), data=None)
    return bytes(model.SerializeToString())


def edit_metadata(model: onnx.ModelProto, **entries: Any) -> None:  # noqa: ANN401 - whatever JSON holds
    """Replace entries of the metadata."""
    (entry,) = [entry for entry in model.metadata_props if entry.key == "qil_deploy"]
    entry.value = json.dumps(json.loads(entry.value) | entries)


@pytest.fixture
def model(content: bytes, tmp_path: Path) -> Path:
    """Return the model, undamaged."""
    path = tmp_path / "good.onnx"
    path.write_bytes(content)
    return path


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one image per class."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(3)
    for name in CLASSES:
        (folder / "test" / name).mkdir(parents=True)
        Image.fromarray(generator.integers(0, 256, (28, 28), np.uint8)).save(folder / "test" / name / "0.png")
    return folder


@pytest.fixture
def golden(model: Path, tmp_path: Path) -> Path:
    """Return golden vectors of the model."""
    path = tmp_path / "good.golden.npz"
    write_golden(model, np.random.default_rng(4).integers(0, 256, (2, 1, 28, 28), np.uint8), "noise", path)
    return path


@pytest.fixture
def ends(call: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Return a function that runs a command and requires it to end in an allowed way."""

    def end(*arguments: object) -> Outcome:
        outcome = call(*arguments)
        assert outcome.code in (0, 1, 2), (arguments, outcome)
        assert "Traceback" not in outcome.error
        if outcome.code == 2:
            error = outcome.error.removeprefix("\n")
            assert error.startswith("Error: "), outcome
            assert error.endswith(".\n"), outcome
            assert error.count("\n") == 1, outcome
        return outcome

    return end
