"""The sets of kernels that tests force if this processor can run them, and the operators of each."""

from __future__ import annotations

import pytest

# A set and an operator that it has kernels for.
SETS = [("scalar", "LowBitConv"), ("avx512vbmi", "TernaryConv"), ("avx2", "TernaryConv"), ("avx2", "LowBitConv")]
for_each_set = pytest.mark.parametrize(("kernel_set", "operator"), SETS)


def force(kernel_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make sessions created from now on use a set of kernels; skip the test if this processor cannot run it."""
    qil_deploy_kernels = pytest.importorskip("qil_deploy_kernels")
    lines = dict(line.split(": ", 1) for line in qil_deploy_kernels.explain().splitlines())
    reason = lines.get(f"{kernel_set} for TernaryConv", "not for this architecture")
    if reason.startswith(("the processor lacks", "not for")):
        pytest.skip(f"{kernel_set}: {reason}")
    monkeypatch.setenv("QIL_DEPLOY_KERNELS", kernel_set)
