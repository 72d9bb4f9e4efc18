"""The package says what it chose; a set that nobody knows, or that the processor lacks, is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from .models import random_convolution, session


def test_the_node_runs_in_the_library(library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    import qil_deploy_kernels

    monkeypatch.setenv("QIL_DEPLOY_KERNELS", "scalar")
    convolution, _ = random_convolution(rng, 1, 3)
    before = qil_deploy_kernels.layers()
    living = session(convolution.model(), library)
    assert living is not None
    (line,) = qil_deploy_kernels.layers()[len(before) :]
    assert f"->{convolution.w.shape[0]} " in line
    assert ": scalar, " in line
    assert "scalar: runs, but it is there for tests" in qil_deploy_kernels.explain()
    assert "chosen: scalar (QIL_DEPLOY_KERNELS asks for it)" in qil_deploy_kernels.explain()


def test_off_registers_nothing(library: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    import qil_deploy_kernels

    monkeypatch.setenv("QIL_DEPLOY_KERNELS", "off")
    before = qil_deploy_kernels.layers()
    living = session(random_convolution(rng, 1, 3)[0].model(), library)
    assert living is not None
    assert qil_deploy_kernels.layers() == before
    assert "chosen: none (QIL_DEPLOY_KERNELS is off)" in qil_deploy_kernels.explain()


def test_an_unknown_set_is_refused(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QIL_DEPLOY_KERNELS", "mmx")
    with pytest.raises(Exception, match=r"QIL_DEPLOY_KERNELS is none of .*scalar, off"):
        onnxruntime.SessionOptions().register_custom_ops_library(str(library))
