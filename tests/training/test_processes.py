"""Two processes (gloo) and one, with the same global batch: the same network, within float noise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

WORKER = Path(__file__).parent / "train_in_process.py"
# Sums of a few thousand float64 numbers in another order, carried through ten steps.
NOISE = 1e-9


def trained(kind: str, processes: int, path: Path) -> dict[str, Tensor]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, str(WORKER), kind, str(path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(path)


@pytest.mark.parametrize("kind", ["float", "quantized", "distilled"])
def test_two_processes_train_what_one_trains(kind: str, tmp_path: Path) -> None:
    one, two = (trained(kind, processes, tmp_path / f"{processes}.safetensors") for processes in (1, 2))
    assert len(one["losses"]) == 8
    assert one["losses"][-1] < one["losses"][0]
    for name, tensor in one.items():
        assert torch.allclose(two[name], tensor, atol=NOISE, rtol=NOISE), name
