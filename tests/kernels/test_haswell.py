"""The AVX2 kernels on an emulated processor without AVX-512: chosen unasked, and equal to the byte."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qil_deploy.runtime_tests.targets import find_target, target_state
from qil_deploy.runtime_tests.targets.run import python_command

from .models import random_convolution

GUEST = Path(__file__).with_name("guest.py")
KINDS = ((1, 3), (3, 7), (7, 15))  # largest weight code, largest input code


@pytest.mark.slow
def test_every_byte_is_equal(library: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    target = find_target("haswell")
    reason = target_state(target)
    if reason is not None:
        pytest.skip(reason)
    for case in range(24):
        convolution, x = random_convolution(rng, *KINDS[case % 3])
        (tmp_path / f"{case}.onnx").write_bytes(convolution.model().SerializeToString())
        np.save(tmp_path / f"{case}.npy", x)
    command = python_command(target).and_then(GUEST, library.parents[1], tmp_path)
    ended = subprocess.run(
        command.arguments, check=False, env=command.environment, capture_output=True, text=True, timeout=900
    )
    assert ended.returncode == 0, ended.stderr
    report: dict[str, Any] = json.loads(ended.stdout)
    assert "avx512vbmi: the processor lacks" in report["explain"]
    assert "chosen: avx2 (the first that is faster here" in report["explain"]
    assert report["differing"] == [0] * 24
    kernels = {line.split(": ")[1].split(",")[0] for (line,) in report["layers"]}
    assert {"lookup (AVX2)", "narrow accumulators (AVX2)"} <= kernels
