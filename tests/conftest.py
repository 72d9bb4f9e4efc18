"""Settings and fixtures that every test shares."""

from __future__ import annotations

import os
import sys

# Two test runs on one machine should not fight over its cores. Must be set before numpy or torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import settings

SEED = 20190618

# No deadline: a timing is never an assertion. Every run tries the same cases;
# `pytest --hypothesis-profile=thorough` looks for new ones, and for more of them; `campaign` is for random networks.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.register_profile("campaign", deadline=None, max_examples=4000)
settings.load_profile("repeatable")


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator: the same numbers in every run of a test, whatever ran before."""
    return np.random.default_rng(SEED)


@pytest.fixture(autouse=True)
def _seed_torch() -> None:
    """Seed torch's global generator before each test, without importing torch for those that need none."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(SEED)
