"""Tests that need a browser are skipped where there is none."""

from __future__ import annotations

import pytest

from qil_deploy.runtime_tests.browser import browser_state


@pytest.fixture(scope="session")
def browser() -> None:
    """Skip a test unless target wasm is set up."""
    reason = browser_state()
    if reason is not None:
        pytest.skip(f"target wasm: {reason}")
