"""Settings and fixtures of all tests."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Two test runs on one machine should not fight over its cores. Must be set before numpy or torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.command_line import Outcome
    from tests.trained_digits import Digits

SEED = 20190618

# No deadline: a timing is never an assertion. Every run tries the same cases;
# `pytest --hypothesis-profile=thorough` looks for new ones, and for more of them; `campaign` is for random networks.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.register_profile("campaign", deadline=None, max_examples=4000)
settings.load_profile("repeatable")


def pytest_collection_finish() -> None:
    """Exempt everything imported from garbage collection: visiting it takes a tenth of the time of some tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator: the same numbers in every run of a test, whatever ran before it."""
    return np.random.default_rng(SEED)


@pytest.fixture(scope="session")
def call() -> Callable[..., Outcome]:
    """Return a function that runs the command line."""
    from .command_line import call_command

    return call_command


@pytest.fixture(scope="session")
def refused() -> Callable[..., str]:
    """Return a function that runs a command, requires one sentence and exit code 2, and returns the sentence."""
    from .command_line import refuse_command

    return refuse_command


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let Ctrl-C interrupt this process and its children, even if a shell has SIGINT ignored for the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def user_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name a function of a module outside this project, new for each test, that builds a ResNet-8."""
    module = f"networks_of_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(
        "from qil_deploy.training.models import build_model\n"
        "def small(**arguments):\n"
        "    return build_model('resnet8', arguments)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return f"{module}:small"


@pytest.fixture(scope="session")
def digits() -> Digits:
    """The digits, and a small residual network trained on them."""
    from .trained_digits import train_digits

    return train_digits()


@pytest.fixture(scope="session", autouse=True)
def _wide_terminal() -> Iterator[None]:
    """Keep tables and paths in a command's output from being wrapped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "400")
        yield


@pytest.fixture(autouse=True)
def _seed_torch() -> None:
    """Seed torch's global generator before each test, without importing torch for those that need none."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(SEED)
