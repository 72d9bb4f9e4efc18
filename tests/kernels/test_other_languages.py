"""The library in programs that are not Python: through the interfaces of C, and of C++ and Java, as documented."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from .kernel_sets import force
from .models import random_convolution, run

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CXX_HEADER = "onnxruntime_cxx_api.h"
CXX_LINE = 'options.RegisterCustomOpsLibrary(ORT_TSTR("libqil_deploy_kernels.so"))'
JAVA_CLASS = "ai.onnxruntime.OrtSession"
JAVA_LINE = 'options.registerCustomOpLibrary("libqil_deploy_kernels.so")'


@pytest.fixture
def runtime() -> Path:
    """ONNX Runtime itself, from the wheel."""
    found = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    if not found:
        pytest.skip("this build of ONNX Runtime has no libonnxruntime.so")
    return found[0]


def compiled(source: str, folder: Path, *options: object) -> Path:
    """Compile a program; skip the test if there is no compiler."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    program = folder / Path(source).stem
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-o", program, HERE / "cpp" / source, *options]
    subprocess.run([str(part) for part in command], check=True)
    return program


def compare(command: list[object], folder: Path, rng: np.random.Generator, **environment: str) -> str:
    """Run a program on a random layer, whose output must equal Python's; return the program's output."""
    convolution, x = random_convolution(rng, 1, 3)
    model = convolution.model()
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "x").write_bytes(x.tobytes())
    arguments = [str(part) for part in (*command, folder / "x", folder / "y", *x.shape)]
    ended = subprocess.run(
        arguments, check=False, capture_output=True, text=True, env=os.environ | environment, cwd=folder
    )
    assert ended.returncode == 0, ended.stderr
    expected = run(model, x)
    found = np.frombuffer((folder / "y").read_bytes(), np.uint8).reshape(expected.shape)
    np.testing.assert_array_equal(found, expected)
    return ended.stdout


@pytest.mark.parametrize("kernel_set", ["scalar", "avx512vbmi", "avx2"])
def test_a_c_program_gets_the_same_codes(
    kernel_set: str,
    library: Path,
    runtime: Path,
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    force(kernel_set, monkeypatch)
    program = compiled("run_by_c.cpp", tmp_path, f"-I{ROOT / 'kernels' / 'src'}", "-ldl")
    printed = compare([program, runtime, tmp_path / "model.onnx", library], tmp_path, rng)
    assert printed.startswith("TernaryConv ")


def test_a_cpp_program_gets_the_same_codes(
    library: Path, runtime: Path, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No package contains the headers: CPLUS_INCLUDE_PATH gives their folder, or they are among the system's."""
    force("scalar", monkeypatch)
    if shutil.which("g++") is None or not has_header():
        pytest.skip(f"needs g++ and {CXX_HEADER}, which CPLUS_INCLUDE_PATH can name")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (tmp_path / name).symlink_to(runtime)
    program = compiled("run_by_cpp.cpp", tmp_path, f"-L{tmp_path}", "-lonnxruntime")
    places = os.pathsep.join(map(str, (tmp_path, library.parent)))
    compare([program, tmp_path / "model.onnx"], tmp_path, rng, LD_LIBRARY_PATH=places)


def has_header() -> bool:
    """Whether the compiler finds ONNX Runtime's C++ interface."""
    source = f"#include <{CXX_HEADER}>\n"
    command = ["g++", "-std=c++17", "-E", "-x", "c++", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=False).returncode == 0


@pytest.mark.parametrize("kernel_set", ["scalar", "avx512vbmi", "avx2", "off"])
def test_a_java_program_gets_the_same_codes(
    kernel_set: str, library: Path, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No wheel contains the jar: CLASSPATH gives its path, with the runtime inside as in the published one."""
    if kernel_set == "off":
        monkeypatch.setenv("QIL_DEPLOY_KERNELS", "off")
    else:
        force(kernel_set, monkeypatch)
    if shutil.which("javac") is None or not has_java_class():
        pytest.skip(f"needs a JDK and {JAVA_CLASS}, which CLASSPATH can name")
    command = ["javac", "-Xlint:all", "-Werror", "-d", tmp_path, HERE / "java" / "RunByJava.java"]
    subprocess.run([str(part) for part in command], check=True)
    classes = os.pathsep.join((str(tmp_path), os.environ["CLASSPATH"]))
    program = ["java", "RunByJava", tmp_path / "model.onnx"]
    compare(program, tmp_path, rng, CLASSPATH=classes, LD_LIBRARY_PATH=str(library.parent))
    assert ("TernaryConv" in operators_that_ran(tmp_path)) == (kernel_set != "off")


def has_java_class() -> bool:
    """Whether Java finds ONNX Runtime's classes."""
    command = ["javap", JAVA_CLASS]
    return "CLASSPATH" in os.environ and subprocess.run(command, capture_output=True, check=False).returncode == 0


def operators_that_ran(folder: Path) -> set[str]:
    """Return the operators in the one profile of a folder."""
    (profile,) = folder.glob("profile_*.json")
    return {event["args"]["op_name"] for event in json.loads(profile.read_text()) if "op_name" in event.get("args", {})}


def test_the_library_stays_loaded(library: Path) -> None:
    """Java closes the library with the session's options, while the session may still run its kernels."""
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf")
    read = subprocess.run(["readelf", "-d", str(library)], check=True, capture_output=True, text=True)
    assert "NODELETE" in read.stdout, f"{library} is older than its source: `make kernels`"


@pytest.mark.parametrize(
    ("line", "program"), [(CXX_LINE, "cpp/run_by_cpp.cpp"), (JAVA_LINE, "java/RunByJava.java")], ids=["C++", "Java"]
)
def test_the_pages_say_what_the_program_does(line: str, program: str) -> None:
    assert line in (HERE / program).read_text()
    for page in ("README.md", "docs/kernels.md", "kernels/README.md"):
        assert line in (ROOT / page).read_text(), page
