"""The kernel library, for tests that compare it with ONNX Runtime's own kernels."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def library() -> Path:
    """Return the path of the library of kernels."""
    kernels = pytest.importorskip("qil_deploy_kernels", reason="qil-deploy-kernels is not installed: `make kernels`")
    path: Path = kernels.library_path()
    return path
