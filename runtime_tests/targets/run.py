"""Run a model on a target, wherever that is, and check that the report that comes back is of this run.

This machine and emulated ones start `device_runner.py`; browsers and remote devices have packages of their own.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from qil_deploy.errors import ConfigError, DataError, TargetError
from qil_deploy.reports import read_report
from qil_deploy.runtime_tests.exported_model import read_exported_model
from qil_deploy.runtime_tests.golden_chunks import open_golden

from .catalogue import Emulator, Target, emulator_python, target_state
from .check_report import check_report, largest_report
from .options import RunOptions
from .remote import Remote
from .remote_run import run_on_device
from .report import DeviceReport
from .watched import Command, Progress, TooMuchOutputError, quoted, run_watched

RUNNER = Path(__file__).parents[1] / "device_runner.py"


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
    if not options.timeout > 0:
        raise ConfigError(f"the timeout is {options.timeout:g} seconds; it must be positive.")
    reason = target_state(target)
    if reason is not None:
        raise TargetError(f"target {target.name} cannot run: {reason}")
    if target.browser:
        from qil_deploy.runtime_tests.browser import run_in_browser

        return run_in_browser(model, data, options, progress)
    exported = read_exported_model(model)
    with tempfile.TemporaryDirectory() as folder:
        try:
            golden = open_golden(data, exported, exported.batch or options.batch, Path(folder))
        except DataError as error:
            raise TargetError(f"target {target.name} was not started: {error}") from error
        files, most = (model, data), largest_report(golden, options)
        if target.remote is not None:
            report = _run_remotely(target.name, target.remote, files, options, most, progress)
        else:
            report = _run_python(target, files, options, most, progress)
        try:
            check_report(report, exported, golden, options, browser=False)
        except DataError as error:
            raise TargetError(f"target {target.name} sent what is no report of this run: {error}.") from error
    return report


def _run_python(
    target: Target, files: tuple[Path, Path], options: RunOptions, most: int, progress: Progress | None
) -> DeviceReport:
    """Start `device_runner.py` on this machine, itself or emulated."""
    command = python_command(target)
    arguments = [*command.arguments, str(RUNNER), *(str(file.absolute()) for file in files)]
    arguments += _runner_options(options)
    if target.cpu is not None:
        arguments += ["--cpu", f"{target.cpu} (qemu)"]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "report.json"
        command = Command(arguments=tuple(arguments), environment=command.environment)
        try:
            code, last_words = run_watched(command, output, options.timeout, progress, largest_output=most)
        except TooMuchOutputError as error:
            raise TargetError(f"target {target.name} {error}") from error
        if code is None:
            raise TargetError(
                f"target {target.name} has not answered for {options.timeout:g} seconds and was stopped; "
                f"give it longer with --timeout, or fewer images.{quoted(last_words)}"
            )
        if code not in (0, 1):
            raise TargetError(f"target {target.name} failed with exit code {code}.{quoted(last_words)}")
        try:
            return read_report(output, DeviceReport)
        except DataError as error:
            raise TargetError(f"target {target.name} brought back no report: {error}{quoted(last_words)}") from error


def _run_remotely(
    name: str,
    remote: Remote,
    paths: tuple[Path, Path],
    options: RunOptions,
    most: int,
    progress: Progress | None,
) -> DeviceReport:
    """Run `device_runner.py` on a device, under names of our own, so that none of the user's can trouble it."""
    model, data = paths
    files = {RUNNER.name: RUNNER, "model.onnx": model, "golden vectors": data}
    try:
        report = run_on_device(remote, files, _runner_options(options), options.timeout, most, progress)
    except TargetError as error:
        raise TargetError(f"target {name} {error}") from error
    return replace(report, model=model.name)


def _runner_options(options: RunOptions) -> list[str]:
    """Return the arguments of `device_runner.py` behind the model and the data."""
    arguments = ["--levels", ",".join(options.levels), "--threads", str(options.threads)]
    return [*arguments, "--batch", str(options.batch), "--repeats", str(options.repeats)]


def python_command(target: Target) -> Command:
    """Return how to start Python on this machine, itself or emulated, which is set up."""
    if target.emulator is None:
        return Command(arguments=(sys.executable, "-P"), environment=dict(os.environ))
    return emulated_python(target.emulator, str(target.cpu), target.emulator.folder, emulator_python(target.emulator))


def emulated_python(emulator: Emulator, cpu: str, folder: Path, python: Path) -> Command:
    """Return how to start a Python in an emulator, with the packages of its folder and no others."""
    arguments = [str(folder / emulator.qemu), "-cpu", cpu]
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONPATH"] = str(folder / "packages")
    if emulator.system is not None:
        arguments += ["-L", str(folder / "system")]
        environment["PYTHONHOME"] = str(folder / "system" / "usr")
    return Command(arguments=(*arguments, str(python), "-S", "-P"), environment=environment)
