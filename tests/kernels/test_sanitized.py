"""The library, built with the address and undefined-behaviour sanitizers, passes the other tests of this folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTED = ["test_random_layers.py", "test_hostile_files.py", "test_threads.py", "test_package.py", "test_winograd.py"]
TESTED += ["test_sums_in_words.py", "test_matmul.py", "test_max_pool.py", "test_additions.py"]


@pytest.mark.slow
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None or shutil.which("cmake") is None:
        pytest.skip("needs g++ and CMake")
    build, package = tmp_path / "build", tmp_path / "path" / "qil_deploy_kernels"
    compiled = ["-DQIL_SANITIZE=ON", f"-DCMAKE_CXX_COMPILER={compiler}"]
    subprocess.run(["cmake", "-S", ROOT / "kernels", "-B", build, *compiled], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", build, "--parallel"], check=True, capture_output=True)
    shutil.copytree(ROOT / "kernels" / "qil_deploy_kernels", package)
    shutil.copy(build / "libqil_deploy_kernels.so", package)
    # Python itself is not instrumented, so the sanitizer has to be loaded before it, and so has the C++ library whose
    # exceptions it watches. What Python never frees is no leak.
    preloaded = [_path_of(compiler, name) for name in ("libasan.so", "libstdc++.so")]
    environment = os.environ | {
        "LD_PRELOAD": " ".join(preloaded),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": os.pathsep.join([str(package.parent), str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    tests = [str(ROOT / "tests" / "kernels" / name) for name in TESTED]
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *tests]
    outcome = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, (outcome.stdout + outcome.stderr)[-5000:]
    assert " passed" in outcome.stdout


def _path_of(compiler: str, library: str) -> str:
    command = [compiler, f"-print-file-name={library}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
