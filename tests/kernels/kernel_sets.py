"""The sets of kernels that tests force, where this processor can run them."""

from __future__ import annotations

import pytest

SETS = ["scalar", "avx512vbmi", "avx2"]


def force(kernel_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have sessions made from now on use a set of kernels; skip the test where this processor cannot run it."""
    qil_deploy_kernels = pytest.importorskip("qil_deploy_kernels")
    lines = dict(line.split(": ", 1) for line in qil_deploy_kernels.explain().splitlines())
    reason = lines.get(kernel_set, "not for this architecture")
    if reason.startswith(("the processor lacks", "not for")):
        pytest.skip(f"{kernel_set}: {reason}")
    monkeypatch.setenv("QIL_DEPLOY_KERNELS", kernel_set)
