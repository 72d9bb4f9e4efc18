"""The AVX2 kernels on an emulated processor without AVX-512: chosen by default, and all bytes are equal."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qil_deploy.runtime_tests.targets import find_target, target_state
from qil_deploy.runtime_tests.targets.run import python_command

from .addition_models import random_sum
from .models import random_convolution, random_depthwise, three_by_three

GUEST = Path(__file__).with_name("guest.py")
KINDS = ((1, 3), (3, 7), (7, 15))  # largest weight code, largest input code
MAKERS = (random_convolution, three_by_three, random_depthwise)
RANDOM_CASES, CASES = 24, 36
SUMS = 8


@pytest.mark.slow
@pytest.mark.parametrize("kernel_set", ["", "avx2"])
def test_every_byte_is_equal(kernel_set: str, library: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    target = find_target("haswell")
    reason = target_state(target)
    if reason is not None:
        pytest.skip(reason)
    for case in range(CASES):
        kind = KINDS[case // 3 % 3]
        convolution, x = MAKERS[0 if case < RANDOM_CASES else case % len(MAKERS)](rng, *kind)
        (tmp_path / f"{case}.onnx").write_bytes(convolution.model().SerializeToString())
        np.save(tmp_path / f"{case}.npy", x)
    for case in range(CASES, CASES + SUMS):
        model, x = random_sum(rng, clipped=bool(case % 2))
        (tmp_path / f"{case}.onnx").write_bytes(model.SerializeToString())
        np.save(tmp_path / f"{case}.npy", x)
    command = python_command(target).and_then(GUEST, library.parents[1], tmp_path)
    environment = {**command.environment, "QIL_DEPLOY_KERNELS": kernel_set}
    ended = subprocess.run(command.arguments, check=False, env=environment, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stderr
    report: dict[str, Any] = json.loads(ended.stdout)
    assert report["differing"] == [0] * (CASES + SUMS)
    assert "avx512vbmi for TernaryConv: the processor lacks" in report["explain"]
    assert "chosen for TernaryConv: avx2 (" in report["explain"]
    assert "chosen for LowBitConv: avx2 (" in report["explain"]
    kernels = {line.split(": ")[1].split(",")[0] for lines in report["layers"] for line in lines}
    assert {"Winograd (AVX2)", "lookup (AVX2)", "sums in 16 bits (AVX2)", "depthwise by channels (AVX2)"} <= kernels
    assert {"sums in float (AVX2)", "counted steps (AVX2)"} <= kernels
