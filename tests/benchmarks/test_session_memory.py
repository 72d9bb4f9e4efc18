"""The memory of a session is measured in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

import session_memory
from session_memory import NO_LIBRARY, SessionMemory
from tests.kernels.matmul_and_pool_models import pool_model


@pytest.mark.skipif(not session_memory.STATUS.is_file(), reason="this system does not tell the memory of a process")
def test_a_session_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "pool.onnx"
    path.write_bytes(pool_model([1, 1], [1, 1], [0, 0, 0, 0]).SerializeToString())
    found = session_memory.measure(path, NO_LIBRARY)
    assert 0 < found.resident <= found.peak


def test_both_figures_are_shown() -> None:
    assert str(SessionMemory(resident=12_340_000, peak=56_780_000)) == "12.3 (56.8)"
