"""Run a model on any target, and check that the returned report belongs to this run.

This machine, emulated ones and devices run the package's own zip file (`device_program`); browsers have a runner of
their own.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from qil_deploy.errors import DataError, TargetError
from qil_deploy.reports import read_report
from qil_deploy.runtime_tests import device_program
from qil_deploy.runtime_tests.bench.options import check_timeout
from qil_deploy.runtime_tests.device_report import DeviceReport
from qil_deploy.runtime_tests.exported_model import read_exported_model
from qil_deploy.runtime_tests.golden_chunks import open_golden
from qil_deploy.runtime_tests.kernel_library import SET_VARIABLE

from .catalogue import Emulator, Target, emulator_python, target_state
from .check_report import check_report, largest_report
from .options import RunOptions
from .remote_run import run_on_device
from .worker_process import Command, Progress, WorkerError, quoted, run_worker

_LIBRARY = "kernels.so"  # on a device


def run_on_target(
    target: Target, model: Path, data: Path, options: RunOptions, progress: Progress | None = None
) -> DeviceReport:
    """Run a model on a target.

    Args:
        target: where.
        model: the ONNX file.
        data: golden vectors (.npz), or uint8 images (.npy).
        options: how.
        progress: called with each sign of progress.

    Raises:
        ConfigError: the timeout is not positive.
        TargetError: the target is not set up, fails, stops answering, or reports on something else.
    """
    check_timeout(options.timeout)
    reason = target_state(target)
    if reason is not None:
        raise TargetError(f"target {target.name} cannot run: {reason}")
    if target.browser:
        from qil_deploy.runtime_tests.browser import run_in_browser

        return run_in_browser(model, data, options, progress)
    exported = read_exported_model(model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            golden = open_golden(data, exported, exported.batch or options.batch, folder)
        except DataError as error:
            raise TargetError(f"target {target.name} was not started: {error}") from error
        try:
            report = _run(target, (model, data), options, largest_report(golden, options), folder, progress)
        except WorkerError as error:
            raise TargetError(f"target {target.name} {error}") from error
        try:
            check_report(report, exported, golden, options, browser=False)
        except DataError as error:
            raise TargetError(f"target {target.name} did not send a report of this run: {error}.") from error
    return report


def _run(
    target: Target, paths: tuple[Path, Path], options: RunOptions, most: int, folder: Path, progress: Progress | None
) -> DeviceReport:
    """Run a model and data; return the output, of at most `most` bytes.

    Raises:
        WorkerError: nothing does.
    """
    program, output = folder / device_program.NAME, folder / "output"
    device_program.write_device_program(program)
    arguments = ["--levels", ",".join(options.levels), "--threads", str(options.threads)]
    arguments += ["--batch", str(options.batch), "--repeats", str(options.repeats)]
    model, data = paths
    if target.remote is not None:
        # Under names of our own, so that none of the user's can trouble the device.
        files = {program.name: program, "model.onnx": model, "golden vectors": data}
        arguments = [*files, *arguments]
        if options.kernels is not None:
            files[_LIBRARY] = options.kernels
            arguments += ["--kernels", _LIBRARY]
        code, last_words = run_on_device(
            target.remote, files, arguments, options.timeout, most, output, progress, _forced_set()
        )
    else:
        if options.kernels is not None:
            arguments += ["--kernels", str(options.kernels.absolute())]
        if target.cpu is not None:
            arguments += ["--cpu", f"{target.cpu} (qemu)"]
        command = python_command(target).and_then(program, model.absolute(), data.absolute(), *arguments)
        code, last_words = run_worker(command, output, options.timeout, progress, largest_output=most)
    if code is None:
        raise WorkerError(
            f"has not answered for {options.timeout:g} seconds and was stopped; give it longer with --timeout, or "
            f"fewer images.{quoted(last_words)}"
        )
    if code not in (0, 1):
        raise WorkerError(f"failed with exit code {code}.{quoted(last_words)}")
    try:
        report = read_report(output, DeviceReport)
    except DataError as error:
        what = str(error).replace(str(output), "what it sent")
        raise WorkerError(f"brought back no report: {what}{quoted(last_words)}") from error
    return report if target.remote is None else replace(report, model=model.name)


def python_command(target: Target) -> Command:
    """Return the command that starts Python on this machine, native or emulated; it must be set up."""
    if target.emulator is None:
        return Command(arguments=(sys.executable, "-P"), environment=dict(os.environ))
    return emulated_python(target.emulator, str(target.cpu), target.emulator.folder, emulator_python(target.emulator))


def emulated_python(emulator: Emulator, cpu: str, folder: Path, python: Path) -> Command:
    """Return the command that starts Python in an emulator, with the packages of its folder and no others."""
    arguments = [str(folder / emulator.qemu), "-cpu", cpu]
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONPATH"] = str(folder / "packages")
    environment |= _forced_set()
    if emulator.system is not None:
        arguments += ["-L", str(folder / "system")]
        environment["PYTHONHOME"] = str(folder / "system" / "usr")
    return Command(arguments=(*arguments, str(python), "-S", "-P"), environment=environment)


def _forced_set() -> dict[str, str]:
    """Return the variable that forces a set of kernels, if it is set here: it applies to every target."""
    return {SET_VARIABLE: os.environ[SET_VARIABLE]} if SET_VARIABLE in os.environ else {}
