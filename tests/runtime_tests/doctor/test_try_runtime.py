"""Models that hang ONNX Runtime, crash it or exhaust memory are findings; no process outlives the command."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from qil_deploy.errors import ConfigError, ModelFileError
from qil_deploy.runtime_tests.child_process import Ended, run_apart
from qil_deploy.runtime_tests.doctor import Diagnosis, Finding, Limits, diagnose
from tests.runtime_tests.patience import wait_for

from .graph_files import CONVOLUTION, constants, write_graph

if TYPE_CHECKING:
    from tests.command_line import Outcome

MEBIBYTE = 2**20
RUN_APART = "qil_deploy.runtime_tests.doctor.try_runtime.run_apart"


def nested_functions(path: Path, depth: int) -> Path:
    """Write nested functions, each calling the next one twice: 2**depth operators in a few kilobytes."""
    functions = []
    for level in range(depth):
        called = f"local.f{level + 1}" if level < depth - 1 else "Relu"
        functions.append(
            f'<domain: "local", opset_import: ["" : 21, "local" : 1]>\n'
            f"f{level} (a) => (c) {{ b = {called}(a)\n c = {called}(b) }}"
        )
    return write_graph(path, "y = local.f0(x)", {}, "float[1,4] x", "float[1,4] y", functions="\n".join(functions))


def endless_loop(path: Path) -> Path:
    """Write a model that loads and never ends."""
    body = """
        y = Loop(times, yes, x)<
            body = one (int64 i, bool go_on, float[1,4] a) => (bool again, float[1,4] b) {
                again = Identity(go_on)
                b = Sin(a)
            }
        >
    """
    return write_graph(path, body, {"times": np.int64(2**62), "yes": np.bool_(True)}, "float[1,4] x", "float[1,4] y")


def doubling_constant(path: Path, doublings: int) -> Path:
    """Write one number that is concatenated to 2**doublings when the file is loaded."""
    nodes = [f"c{index + 1} = Concat<axis = 0>(c{index}, c{index})" for index in range(doublings)]
    body = "\n".join([*nodes, f"y = Add(x, c{doublings})"])
    return write_graph(path, body, {"c0": np.ones(1, np.float32)}, "float[1] x", "float[N] y")


def finding(diagnosis: Diagnosis, kind: str) -> Finding:
    (found,) = [finding for finding in diagnosis.findings if finding.kind == kind]
    return found


def test_nested_functions_are_stopped(tmp_path: Path) -> None:
    diagnosis = diagnose(nested_functions(tmp_path / "nested.onnx", 40), Limits(seconds=3))
    found = finding(diagnosis, "does-not-load")
    assert found.severity == "blocks"
    assert found.where == ("loading and optimizing the file: it was stopped after 3 seconds",)
    assert "functions that call each other" in found.remedy
    assert not diagnosis.loads


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")
def test_constants_that_grow_are_stopped(tmp_path: Path) -> None:
    path = doubling_constant(tmp_path / "growing.onnx", 30)
    found = finding(diagnose(path, Limits(memory=400 * MEBIBYTE)), "does-not-load")
    assert found.where == ("loading and optimizing the file: it asked for more than 400 MiB",)
    assert "It loads with graph optimizations disabled" in found.remedy
    assert "Concat" in found.remedy


def test_a_graph_that_has_grown_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["qil_deploy.runtime_tests.doctor.diagnose"], "_LARGEST_OPTIMIZED", 2**15)
    diagnosis = diagnose(doubling_constant(tmp_path / "growing.onnx", 16))
    found = finding(diagnosis, "not-looked-into")
    assert found.severity == "unknown"
    assert re.match(r"the graph that is executed: 26\d,\d{3} bytes, which are computed from ", found.where[0])
    assert diagnosis.loads


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")
def test_a_run_that_takes_too_much_memory_is_not_known(tmp_path: Path) -> None:
    body = "big = Expand(x, shape)\n y = ReduceSum(big)"
    path = write_graph(
        tmp_path / "large.onnx", body, {"shape": np.array([2**15, 2**14])}, "float[1,1] x", "float[1,1] y"
    )
    diagnosis = diagnose(path, Limits(memory=400 * MEBIBYTE))
    found = finding(diagnosis, "not-compared")
    assert (found.severity, found.where) == ("unknown", ("running it once: it asked for more than 400 MiB",))
    assert diagnosis.loads
    assert not diagnosis.healthy


def test_a_run_that_does_not_end_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: Sequence[str], *, timeout: float) -> Ended:
        """Let time pass from when the file is loaded."""
        with subprocess.Popen(command) as process:
            wait_for((Path(command[-1]).parent / "types.json").exists)
            time.sleep(timeout)
            assert process.poll() is None
            process.kill()
        raise TimeoutError

    monkeypatch.setattr(RUN_APART, run)
    found = finding(diagnose(endless_loop(tmp_path / "endless.onnx"), Limits(seconds=3)), "not-compared")
    assert (found.severity, found.where) == ("unknown", ("running it once: it was stopped after 3 seconds",))


def crashing(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Make the runtime's process crash in a step."""
    code = (
        "import os, sys\n"
        "from qil_deploy.runtime_tests.doctor import runtime_steps as steps\n"
        f"steps._STEPS[{step!r}] = lambda _: os.abort()\n"
        "sys.exit(steps.main(sys.argv[1:]))\n"
    )

    def run(command: Sequence[str], *, timeout: float) -> Ended:
        return run_apart([sys.executable, "-P", "-c", code, command[-1]], timeout=timeout)

    monkeypatch.setattr(RUN_APART, run)


@pytest.mark.parametrize(
    ("step", "kind", "severity", "what"),
    [
        ("optimize", "does-not-load", "blocks", "loading and optimizing the file"),
        ("types", "not-looked-into", "unknown", "the graph that is executed, whose types are not known"),
        ("run_plain", "optimizer-changes-result", "wrong", "running it once without optimizations"),
        ("run", "does-not-run", "blocks", "running it once"),
    ],
)
def test_a_crash_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, kind: str, severity: str, what: str
) -> None:
    path = write_graph(tmp_path / "model.onnx", CONVOLUTION, constants())
    crashing(monkeypatch, step)
    diagnosis = diagnose(path)
    found = finding(diagnosis, kind)
    assert found.severity == severity
    (place,) = found.where
    assert place.startswith(what)
    assert "SIGABRT" in place
    assert len(diagnosis.findings) == 1
    assert diagnosis.loads is (step != "optimize")


def test_a_process_that_fails_by_itself_is_no_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_graph(tmp_path / "model.onnx", CONVOLUTION, constants())
    monkeypatch.setattr("qil_deploy.runtime_tests.doctor.try_runtime._MODULE", "qil_deploy.no_such_module")
    with pytest.raises(ModelFileError, match=r"cannot be tried in a process .*: it failed: .*no_such_module"):
        diagnose(path)


@pytest.mark.parametrize("limits", [{"seconds": 0}, {"seconds": float("nan")}, {"memory": 0}, {"memory": 2**80}])
def test_limits_are_positive(limits: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        Limits(**limits)  # type: ignore[arg-type] # wrong on purpose


def test_the_command_passes_limits_on(tmp_path: Path, call: Callable[..., Outcome]) -> None:
    path = nested_functions(tmp_path / "nested.onnx", 40)
    outcome = call("doctor", path, "--timeout", 2, "--json", tmp_path / "doctor.json")
    assert outcome.code == 1
    assert "it was stopped after 2 seconds" in outcome.out
    assert json.loads((tmp_path / "doctor.json").read_text())["findings"][0]["kind"] == "does-not-load"
    assert call("doctor", path, "--timeout", 0).code == 2


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of processes that name a folder."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended
        if str(folder) in line:
            lines.append(line)
    return lines


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are listed on Linux alone")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_the_command(tmp_path: Path, ending: signal.Signals) -> None:
    path = nested_functions(tmp_path / "nested.onnx", 40)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-P", "-c", _COMMAND, "doctor", str(path)]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(lambda: any("runtime_steps" in line for line in processes_of(temporary)))
        process.send_signal(ending)
        out, error = process.communicate(timeout=120)
    wait_for(lambda: not processes_of(temporary))
    if ending == signal.SIGINT:
        assert (process.returncode, out) == (130, "")
        assert "Traceback" not in error
        assert [path for path in temporary.iterdir() if path.is_dir()] == []


# A shell may start its jobs with SIGINT ignored, which they hand down.
_COMMAND = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from qil_deploy.commands import main
main()
"""
