"""Executed instructions on emulated targets: what is counted, what is recorded, and obstacles."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from qil_deploy.commands.bench import bench_command
from qil_deploy.errors import ConfigError, ModelFileError, TargetError
from qil_deploy.reports import read_report, write_report
from qil_deploy.runtime_tests.bench.trial import try_model
from qil_deploy.runtime_tests.device_program import write_device_program
from qil_deploy.runtime_tests.device_report import GuestReport
from qil_deploy.runtime_tests.instructions import (
    CountOptions,
    InstructionsReport,
    count_instructions,
    counter_state,
    guest,
    setup,
)
from qil_deploy.runtime_tests.instructions import run as run_module
from qil_deploy.runtime_tests.instructions.counter import counter_folder, counting_qemu
from qil_deploy.runtime_tests.instructions.report import differences, spread, summarize, unsteady
from qil_deploy.runtime_tests.instructions.table import instructions_table
from qil_deploy.runtime_tests.targets import find_target, install_folder, set_up_target, target_state, worker_process
from qil_deploy.runtime_tests.targets.catalogue import ARM64, HASWELL
from qil_deploy.runtime_tests.targets.install_folder import ABOUT, FOLDER_VARIABLE
from qil_deploy.runtime_tests.targets.worker_process import Command, run_worker
from qil_deploy.terminal.console import Console
from tests.runtime_tests.patience import Clock, lives

WriteModel = Callable[..., Path]

A53 = find_target("arm64:cortex-a53")
ENVIRONMENT = {
    "onnxruntime": "1.24.1",
    "numpy": "2.4.6",
    "python": "3.11.2",
    "browser": None,
    "machine": "aarch64",
    "cpu": "cortex-a53",
    "cpus": 1,
    "features": ["NEON"],
}
# In place of the emulator: writes marks where the plugin would, does what its model's name says, and reports.
FAKE = """
import json, os, pathlib, sys, time
marks, environment, guest, program, model, inputs, warmup, repeats, cpu, *kernels = sys.argv[1:]
name = pathlib.Path(model).stem
counted = (400 if name == "large" else 100) - (30 if kernels else 0)
lines = [f"{1000 + 500 * (mark // 2) + (mark % 2) * counted} 1" for mark in range(6)]
if name == "threads":
    lines[0] = lines[0].replace(" 1", " 2")
pathlib.Path(marks).write_text("\\n".join(lines[:3] if name in ("hangs", "crashes") else lines) + "\\n")
sys.stderr.write("progress: counting: 1 of 3 runs\\n")
sys.stderr.flush()
if name == "hangs":
    pathlib.Path(model).with_suffix(".process").write_text(str(os.getpid()))
    time.sleep(600)
if name in ("crashes", "refused"):
    pathlib.Path(marks).unlink() if name == "refused" else None
    sys.stderr.write("ONNX Runtime 1.24.1: it is odd\\n")
    sys.exit(2)
print(json.dumps({"schema": "qil_deploy.guest/1", "environment": json.loads(environment)}))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of targets."""
    folder = tmp_path / "targets"
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    return folder


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state in which everything is set up, with `FAKE` as the emulator."""

    def command(emulator: object, cpu: str, python: Path, counts: Path, folder: Path) -> Command:
        del emulator, cpu, python, folder
        return Command(arguments=(sys.executable, "-c", FAKE, str(counts), json.dumps(ENVIRONMENT)), environment={})

    monkeypatch.setattr(run_module, "counted_python", command)
    monkeypatch.setattr(run_module, "try_model", lambda *_: None)  # takes seconds
    monkeypatch.setattr(run_module, "target_state", lambda _: None)
    monkeypatch.setattr(run_module, "counter_state", lambda: None)
    monkeypatch.setattr(run_module, "emulator_python", lambda _: Path("python3.11"))


def bench(*arguments: object) -> Result:
    """Call `bench`."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(bench_command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def shown(report: InstructionsReport) -> str:
    """The command line's output for a report, without line breaks."""
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(instructions_table(report))
    return " ".join(console.export_text().split())


def test_a_run_is_what_lies_between_two_marks() -> None:
    assert differences([10, 15, 100, 107, 200]) == (5, 7)
    assert differences([10]) == differences([]) == ()


def test_medians_ratios_and_spreads(tmp_path: Path) -> None:
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    for path in (first, second):
        path.write_bytes(b"model")
    counts = [(first, ((100, 100), (104,))), (second, ((50,), (50,)))]

    found = summarize(counts)

    assert [model.instructions for model in found] == [100, 50]
    assert [model.ratio for model in found] == [1.0, 0.5]
    assert [model.spread for model in found] == [0.04, 0.0]
    assert found[0].counts == ((100, 100), (104,))
    assert spread(((100,), (101,))) == pytest.approx(1 / 100.5)
    (warning,) = unsteady(found)
    assert warning == f"counts of {first} differ by 4.0% from run to run; give it more --warmup."


def test_marks_that_were_not_finished_do_not_count(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    assert run_module.read_runs(marks, Path("m.onnx")) == ()
    marks.write_text("10 1\n15 1\n20 1\n99")
    assert run_module.read_runs(marks, Path("m.onnx")) == (5,)
    marks.write_text("10 1\n15 2\n")
    with pytest.raises(TargetError, match=r"m.onnx ran on 2 threads, of which the plugin may lose instructions"):
        run_module.read_runs(marks, Path("m.onnx"))


@pytest.mark.usefixtures("emulated")
def test_models_are_counted_in_two_processes_and_the_report_returns(write_model: WriteModel, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    paths = [write_model("large.onnx"), write_model("small.onnx", format="float", input="float")]

    report = count_instructions(paths, A53, CountOptions(), progress=lambda *args: told.append(args))

    assert [model.instructions for model in report.models] == [400, 100]
    assert [model.ratio for model in report.models] == [1.0, 0.25]
    assert [model.counts for model in report.models] == [((400,) * 3,) * 2, ((100,) * 3,) * 2]
    assert not report.failures
    assert not report.warnings
    assert ("small.onnx, process 2 of 2: counting", 1, 3) in told
    write_report(tmp_path / "report.json", report)
    assert read_report(tmp_path / "report.json", InstructionsReport) == report
    assert "_ms" not in (tmp_path / "report.json").read_text()
    assert "arm64:cortex-a53: instructions per inference: a proxy, not a time" in shown(report)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(
    ("name", "reason", "kept"),
    [
        ("hangs", "shown no progress for 2 seconds in the emulator and was stopped; give it longer with --tim", True),
        ("crashes", "cannot be run in the emulator, exit code 2. Its last words: ONNX Runtime 1.24.1: it is odd", True),
        (
            "refused",
            "cannot be run in the emulator, exit code 2. Its last words: ONNX Runtime 1.24.1: it is odd",
            False,
        ),
        ("threads", "ran on 2 threads", False),
    ],
)
def test_what_was_counted_before_a_failure_is_kept(
    write_model: WriteModel, tmp_path: Path, name: str, reason: str, monkeypatch: pytest.MonkeyPatch, *, kept: bool
) -> None:
    wrong, right = write_model(f"{name}.onnx"), write_model("large.onnx")
    monkeypatch.setattr(worker_process, "time", Clock(lambda: lives(wrong.with_suffix(".process"))))

    result = bench(wrong, right, "--target", A53.name, "--timeout", 2, "--json", tmp_path / "report.json")

    assert result.exit_code == 2
    report = read_report(tmp_path / "report.json", InstructionsReport)
    (failure,) = report.failures
    assert failure.path == str(wrong)
    assert reason in failure.reason
    assert failure.reason in result.output.replace("\n", " ")
    assert [model.counts for model in report.models] == ([((100,),)] if kept else []) + [((400,) * 3,) * 2]


@pytest.mark.usefixtures("emulated")
def test_a_file_that_is_no_model_does_not_keep_others_from_being_counted(
    write_model: WriteModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "try_model", try_model)
    noise = tmp_path / "noise.onnx"
    noise.write_bytes(b"noise")
    report = count_instructions([noise, write_model("large.onnx")], A53, CountOptions())
    assert [failure.path for failure in report.failures] == [str(noise)]
    assert [model.instructions for model in report.models] == [400]
    assert bench(noise, "--target", A53.name).exit_code == 2


@pytest.mark.usefixtures("emulated")
def test_an_interruption_keeps_the_models_before_it(
    write_model: WriteModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(
        command: Command, output: Path, timeout: float, progress: Callable[[str], None]
    ) -> tuple[int | None, list[str]]:
        if any("small" in argument for argument in command.arguments):
            raise KeyboardInterrupt
        return run_worker(command, output, timeout, progress)

    monkeypatch.setattr(run_module, "run_worker", interrupted)
    result = bench(
        write_model("large.onnx"), write_model("small.onnx"), "--target", A53.name, "--json", tmp_path / "r.json"
    )
    assert result.exit_code == 130
    report = read_report(tmp_path / "r.json", InstructionsReport)
    assert [model.instructions for model in report.models] == [400]
    assert report.warnings == ("counting was interrupted.",)


@pytest.mark.usefixtures("emulated")
def test_a_library_of_kernels_reaches_the_worker_and_the_report(write_model: WriteModel, tmp_path: Path) -> None:
    library = tmp_path / "kernels.so"
    library.write_bytes(b"ELF")
    report = count_instructions([write_model("large.onnx")], A53, CountOptions(kernels=library))
    assert [model.instructions for model in report.models] == [370]
    assert report.kernels == str(library)
    assert f"kernels: {library}" in shown(report)
    result = bench(write_model("large.onnx"), "--target", A53.name, "--kernels", library, "--json", tmp_path / "r.json")
    assert result.exit_code == 0
    assert read_report(tmp_path / "r.json", InstructionsReport).kernels == str(library)
    with pytest.raises(ConfigError, match=r"there is no library of kernels .*absent.so"):
        CountOptions(kernels=tmp_path / "absent.so")


@pytest.mark.usefixtures("emulated")
def test_wrong_use_is_refused(write_model: WriteModel, tmp_path: Path) -> None:
    model = write_model()
    with pytest.raises(TargetError, match="instructions are counted on emulated targets; native is none"):
        count_instructions([model], find_target("native"), CountOptions())
    with pytest.raises(ModelFileError, match="there is no model file"):
        count_instructions([tmp_path / "absent.onnx"], A53, CountOptions())
    with pytest.raises(ConfigError, match="no model to measure"):
        count_instructions([], A53, CountOptions())
    for options, message in (
        ({"repeats": 0}, "repeats is 0; it must be at least 1"),
        ({"warmup": -1}, "warmup is -1; it must be at least 0"),
        ({"timeout": float("nan")}, "the timeout is nan seconds; it must be positive"),
    ):
        with pytest.raises(ConfigError, match=message):
            CountOptions(**options)
    for extra in (["--threads", "2"], ["--caches", "warm"], ["--profile"]):
        result = bench(model, "--target", A53.name, *extra)
        assert isinstance(result.exception, ConfigError)
        assert "leave --threads, --caches and --profile out" in str(result.exception)
    assert isinstance(bench(model, "--target", "arm64:z80").exception, TargetError)


def test_what_is_not_set_up_is_named(here: Path, write_model: WriteModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert counter_state() == "it is not set up; run: python -m qil_deploy target setup instructions"
    with pytest.raises(TargetError, match="target arm64:cortex-a53 cannot run: it is not set up"):
        count_instructions([write_model()], A53, CountOptions())
    monkeypatch.setattr(run_module, "target_state", lambda _: None)
    with pytest.raises(TargetError, match="instructions cannot be counted: it is not set up"):
        count_instructions([write_model()], A53, CountOptions())
    folder = here / "instructions"
    folder.mkdir(parents=True)
    (folder / ABOUT).write_text("{")
    assert re.search(r"about.json is damaged .*; remove .* and set it up again", counter_state() or "")
    (folder / ABOUT).write_text(json.dumps({"loader": "ld.so", "libraries": []}))
    assert counter_state() == f"{folder / 'count.so'} is gone; remove {folder} and set it up again."
    with pytest.raises(TargetError, match=r"instructions is set up already, in .*; remove that folder"):
        set_up_target("instructions")


def test_machines_that_cannot_count_say_why(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    have = {"apt-get", "dpkg-deb", "cc"}
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}" if name in have else None)
    with pytest.raises(TargetError, match="none is set up; first run: python -m qil_deploy target setup arm64"):
        set_up_target("instructions")
    have.discard("cc")
    with pytest.raises(TargetError, match=r"needs a C compiler \(cc, gcc, clang\); this machine has none"):
        set_up_target("instructions")
    have.clear()
    with pytest.raises(TargetError, match="needs apt-get, dpkg-deb, of Debian"):
        set_up_target("instructions")
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(TargetError, match="qemu-user runs on Linux, and this is darwin"):
        set_up_target("instructions")
    assert not here.exists()


def test_a_set_up_that_fails_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], what: str, cwd: Path | None = None) -> None:
        del command, cwd
        raise TargetError(f"{what} failed with exit code 100: no such host.")

    monkeypatch.setattr(setup, "_check_possible", lambda: ([ARM64], "cc"))
    monkeypatch.setattr(install_folder, "run_step", fail)
    with pytest.raises(TargetError, match="updating the package lists failed with exit code 100"):
        set_up_target("instructions")
    assert list(here.iterdir()) == []


def test_the_worker_needs_no_more_of_this_package_than_the_zip_file_has(
    write_model: WriteModel, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    write_device_program(tmp_path / "device.pyz")
    np.savez(tmp_path / "inputs.npz", allow_pickle=False, **{"0": images[:1]})
    arguments = [tmp_path / "device.pyz", write_model(), tmp_path / "inputs.npz", 1, 2, "a processor"]
    result = subprocess.run(
        [sys.executable, "-P", str(run_module.GUEST), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    (tmp_path / "guest.json").write_text(result.stdout)
    assert read_report(tmp_path / "guest.json", GuestReport).environment.cpu == "a processor"
    assert [line for line in result.stderr.splitlines() if "counting" in line] == [
        "progress: counting: 1 of 2 runs",
        "progress: counting: 2 of 2 runs",
    ]


def test_worker_and_plugin_agree_on_the_mark() -> None:
    (mark,) = re.findall(r"#define MARK (\w+)", setup.SOURCE.read_text())
    assert int(mark, 16) == guest.MARK
    guest.mark()  # no such descriptor: nothing happens


def test_the_plugin_compiles_without_a_warning(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    arguments = [*setup._COMPILE, "-Werror", "-o", str(tmp_path / "count.so"), str(setup.SOURCE)]
    subprocess.run([compiler, *arguments], check=True)


LOOP = """
__asm__(".globl _start\\n_start:\\n"
        "mov $3, %eax\\nmov $0x51494c, %edi\\nsyscall\\n"
        "mov $ITERATIONS, %r12d\\n1: dec %r12d\\njnz 1b\\n"
        "mov $3, %eax\\nmov $0x51494c, %edi\\nsyscall\\n"
        "mov $60, %eax\\nxor %edi, %edi\\nsyscall\\n");
"""


@pytest.mark.parametrize("iterations", [1, 1000, 123457])
def test_counts_are_exact(tmp_path: Path, iterations: int) -> None:
    """A program whose instructions are all known: one before the loop, two in it, three up to the second mark."""
    reason = counter_state()
    if reason is not None or platform.machine() != "x86_64":
        pytest.skip(reason or "the program is for x86-64")
    (tmp_path / "loop.c").write_text(LOOP.replace("ITERATIONS", str(iterations)))
    program, marks = tmp_path / "loop", tmp_path / "a,b"
    subprocess.run(["cc", "-nostdlib", "-static", "-o", str(program), str(tmp_path / "loop.c")], check=True)
    subprocess.run([*counting_qemu(HASWELL, marks, counter_folder()), str(program)], check=True, timeout=60)
    assert run_module.read_runs(marks, program) == (2 * iterations + 4,)


@pytest.mark.slow
def test_a_model_is_counted_on_arm64(write_model: WriteModel, tmp_path: Path) -> None:
    reason = target_state(A53) or counter_state()
    if reason is not None:
        pytest.skip(f"arm64: {reason}")
    result = bench(write_model(), "--target", A53.name, "--repeats", 2, "--json", tmp_path / "report.json")
    assert result.exit_code == 0, result.output
    report = read_report(tmp_path / "report.json", InstructionsReport)
    (model,) = report.models
    assert [len(process) for process in model.counts] == [2, 2]
    assert model.instructions > 10_000
    assert report.environment is not None
    assert report.environment.machine == "aarch64"
