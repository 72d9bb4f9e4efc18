"""Run a model in a browser on this machine, wait as long as it shows progress, and read its report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from qil_deploy.errors import DataError, TargetError
from qil_deploy.runtime_tests.environment import cpu_name
from qil_deploy.runtime_tests.phone.web_runtime import runtime_files, runtime_state, set_up_runtime
from qil_deploy.runtime_tests.targets.options import RunOptions
from qil_deploy.runtime_tests.targets.report import DeviceReport

from .chromium import browser_at, find_chromium
from .trial_model import write_trial_model

_TRIAL_TIMEOUT = 120.0


def browser_state() -> str | None:
    """Return None if a model can run in a browser here, else the reason, as a sentence."""
    try:
        find_chromium()
    except TargetError as error:
        return str(error)
    return runtime_state()


def run_in_browser(
    model: Path,
    data: Path,
    options: RunOptions,
    progress: Callable[[str], None] | None = None,
    *,
    files: Mapping[str, Path] | None = None,
) -> DeviceReport:
    """Run a model in ONNX Runtime Web in a headless Chromium.

    Args:
        model: the ONNX file.
        data: golden vectors (.npz), or uint8 images (.npy).
        options: how.
        progress: called with each sign of progress.
        files: of ONNX Runtime Web; those that are set up, if none are given.

    Raises:
        TargetError: something is not set up, the browser fails or stops answering, or what it sends is no report of
            this run.
        ModelFileError: the model cannot be read.
    """
    from qil_deploy.runtime_tests.phone.server import PageServer
    from qil_deploy.runtime_tests.phone.verification import prepare_verification
    from qil_deploy.runtime_tests.phone.wait_for_result import Patience, wait_for_result

    with tempfile.TemporaryDirectory() as folder:
        try:
            verification = prepare_verification(
                model, data, options, files or runtime_files(), Path(folder), autostart=True
            )
        except DataError as error:
            raise TargetError(f"target wasm was not started: {error}") from error
        with (
            PageServer(verification.service()) as server,
            browser_at(server.url("127.0.0.1"), options.timeout) as browser,
        ):
            patience = Patience(
                name="target wasm",
                timeout=options.timeout,
                silence=f"has not answered for {options.timeout:g} seconds and was stopped; give it longer with "
                "--timeout, or fewer images.",
                ended=browser.ended,
            )
            report: DeviceReport = wait_for_result(server, patience, progress)
    if report.threads != options.threads:
        raise TargetError(f"target wasm ran {report.threads} threads instead of {options.threads}.")
    # Browsers do not tell the processor, but here it is known.
    return replace(report, environment=replace(report.environment, cpu=cpu_name()))


def set_up_browser(say: Callable[[str], None]) -> Path:
    """Set up ONNX Runtime Web, and try it where there is a Chromium; return its folder.

    Raises:
        TargetError: it is there already, something is lacking, or it does not work. Nothing is left behind then.
        OutputError: the folder cannot be written.
    """
    return set_up_runtime(say, _try)


def _try(files: Mapping[str, Path]) -> None:
    """Run a model of two operators. Without a browser, the machine may still serve the page to phones."""
    try:
        find_chromium()
    except TargetError:
        return
    with tempfile.TemporaryDirectory() as folder:
        model, images = write_trial_model(Path(folder))
        run_in_browser(model, images, RunOptions(timeout=_TRIAL_TIMEOUT), files=files)
