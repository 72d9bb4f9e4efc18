"""The NEON kernels, cross-compiled and run on emulated processors: byte for byte the results of the file without them.

Needs g++-aarch64-linux-gnu, CMake and the emulated target: `python -m qil_deploy target setup arm64`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qil_deploy.runtime_tests.targets import find_target, target_state
from qil_deploy.runtime_tests.targets.run import python_command

from .addition_models import random_sum
from .matmul_and_pool_models import random_pool
from .models import Convolution, random_convolution, random_depthwise

KERNELS = Path(__file__).parents[2] / "kernels"
GUEST = Path(__file__).with_name("guest.py")
BITS = [(1, 3), (3, 7), (7, 15), (1, 15), (7, 3), (1, 3), (2, 5)]  # largest weight code, largest input code
CASES = 84
Case = tuple[Convolution, NDArray[np.uint8]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cross-compile the wheel as CONTRIBUTING.md describes, unpack it and return the folder."""
    missing = [tool for tool in ("cmake", "aarch64-linux-gnu-g++") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not on the PATH: {', '.join(missing)}")
    pytest.importorskip("scikit_build_core")
    folder = tmp_path_factory.mktemp("arm64")
    cross = {
        "CMAKE_TOOLCHAIN_FILE": str(KERNELS / "toolchains" / "aarch64-linux-gnu.cmake"),
        "_PYTHON_HOST_PLATFORM": "linux-aarch64",
    }
    pip = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", str(folder), str(KERNELS)]
    subprocess.run(pip, env=os.environ | cross, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.endswith("-py3-none-linux_aarch64.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write random layers, dense and grouped, and cases that random shapes rarely hit; return their folder."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("cases")
    made = [
        random_convolution(rng, *BITS[case % len(BITS)], groups=1 if case % 4 else int(rng.choice([1, 2, 3, 8])))
        for case in range(CASES)
    ]
    made += [random_depthwise(rng, *BITS[case % len(BITS)]) for case in range(16)]
    made += [extreme(sign, code, x_high) for sign in (-1, 1) for code, x_high in ((1, 3), (3, 7), (7, 15))]
    made += [(replace(layer, operator="TernaryConv"), x) for layer, x in made[:8]]  # most do not qualify
    for convolution, x in (made[0], made[1]):
        made.append((convolution, np.where(rng.random(x.shape) < 0.01, 200, x).astype(np.uint8)))
    files = [(convolution.model(), x) for convolution, x in made] + [random_pool(rng) for _ in range(8)]
    files += [random_sum(rng, clipped=True) for _ in range(8)]
    for number, (model, x) in enumerate(files):
        (folder / f"{number}.onnx").write_bytes(model.SerializeToString())
        np.save(folder / f"{number}.npy", x)
    return folder


def extreme(sign: int, code: int, x_high: int) -> Case:
    """Return a layer with the largest possible sums: of 3,600 products, all of one sign."""
    w = np.full((20, 400, 3, 3), sign * code, np.int8)
    largest = 3600 * code * x_high
    convolution = Convolution(
        w=w,
        bias=np.full(20, -sign * (largest - 255), np.int32),
        w_scale=np.float32(1) * np.ones((), np.float32),
        x_scale=1.0,
        y_zero_point=0 if sign > 0 else 255,
        x_high=x_high,
        pads=[1] * 4,
        operator="TernaryConv" if code == 1 else "LowBitConv",
    )
    return convolution, np.full((1, 400, 5, 7), x_high, np.uint8)


def compare(target_name: str, package: Path, folder: Path, kernel_set: str | None) -> dict[str, Any]:
    """Run the guest on an emulated processor; return its report."""
    target = find_target(target_name)
    reason = target_state(target)
    if reason is not None:
        pytest.skip(reason)
    command = python_command(target).and_then(GUEST, package, folder)
    environment = {**command.environment, **({"QIL_DEPLOY_KERNELS": kernel_set} if kernel_set else {})}
    ended = subprocess.run(command.arguments, check=False, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    report: dict[str, Any] = json.loads(ended.stdout)
    return report


@pytest.mark.parametrize(
    ("target", "kernel_set"),
    [("arm64:cortex-a53", None), ("arm64:cortex-a72", None), ("arm64:cortex-a76", "neon")],
)
def test_every_byte_is_equal(target: str, kernel_set: str | None, package: Path, cases: Path) -> None:
    report = compare(target, package, cases, kernel_set)
    assert report["differing"] == [0] * len(report["differing"])
    assert len(report["differing"]) > CASES
    kernels = {line.split(": ")[1].split(",")[0] for (line,) in report["layers"]}
    assert {"depthwise", "lookup", "narrow sums", "rows", "counted steps"} <= kernels


def test_nothing_is_registered_where_there_is_a_dot_product(package: Path, tmp_path: Path) -> None:
    convolution, x = random_convolution(np.random.default_rng(0), 1, 3)
    (tmp_path / "0.onnx").write_bytes(convolution.model().SerializeToString())
    np.save(tmp_path / "0.npy", x)
    report = compare("arm64:cortex-a76", package, tmp_path, None)
    assert report["layers"] == [[]]
    assert report["differing"] == [0]
    for operator in ("TernaryConv", "LowBitConv", "LowBitMaxPool", "LowBitRescale"):
        assert f"neon for {operator}: runs, but it has dot-product instructions" in report["explain"]
        assert f"chosen for {operator}: none" in report["explain"]
