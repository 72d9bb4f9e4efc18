"""Two processes (gloo) and one, with the same global batch, train the same network, within float noise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

WORKER = Path(__file__).parent / "train_in_process.py"
# Sums of a few thousand float64 numbers in another order, carried through ten steps.
NOISE = 1e-9


KINDS = ("float", "quantized", "distilled")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Every kind of network trained by one process and by two: the folders, by number of processes."""
    return {processes: trained(processes, tmp_path_factory.mktemp(f"processes_{processes}")) for processes in (1, 2)}


def trained(processes: int, folder: Path) -> Path:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, str(WORKER), *KINDS, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_what_one_trains(kind: str, folders: dict[int, Path]) -> None:
    one, two = (load_file(folders[processes] / f"{kind}.safetensors") for processes in (1, 2))
    assert len(one["losses"]) == 8
    assert one["losses"][-1] < one["losses"][0]
    for name, tensor in one.items():
        assert torch.allclose(two[name], tensor, atol=NOISE, rtol=NOISE), name
