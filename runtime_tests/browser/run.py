"""Run a model in a browser on this machine, wait as long as it shows progress, and take its report."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qil_deploy.errors import DataError, TargetError
from qil_deploy.runtime_tests.environment import CPUINFO, cpu_name
from qil_deploy.runtime_tests.targets.report import DeviceReport
from qil_deploy.runtime_tests.targets.run import RunOptions

from .chromium import Browser, browser_at, find_chromium
from .server import PageServer
from .trial import write_trial
from .verification import prepare_verification
from .web_runtime import runtime_files, runtime_state, set_up_runtime

_LOOK = 0.2
_TRIAL_TIMEOUT = 120.0

Progress = Callable[[str], None]


def browser_state() -> str | None:
    """Return None if a model can be run in a browser here, else the reason why not, as a sentence."""
    try:
        find_chromium()
    except TargetError as error:
        return str(error)
    return runtime_state()


def run_in_browser(
    model: Path,
    data: Path,
    options: RunOptions,
    progress: Progress | None = None,
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
    with tempfile.TemporaryDirectory() as folder:
        try:
            verification = prepare_verification(
                model, data, options, files or runtime_files(), Path(folder), autostart=True
            )
        except DataError as error:
            raise TargetError(f"target wasm failed. {error}") from error
        with PageServer(verification.service()) as server, browser_at(server.url("127.0.0.1")) as browser:
            report: DeviceReport = wait_for_result(server, browser, options.timeout, progress)
    if report.threads != options.threads:
        raise TargetError(f"target wasm ran {report.threads} threads instead of {options.threads}.")
    # Browsers do not tell the processor, which here is known.
    return replace(report, environment=replace(report.environment, cpu=cpu_name(CPUINFO)))


def wait_for_result(server: PageServer, browser: Browser, timeout: float, progress: Progress | None) -> Any:  # noqa: ANN401 - what the server's `accept` returns
    """Return the result that the page sends.

    Raises:
        TargetError: it fails, shows no progress for `timeout` seconds, or the browser ends.
    """
    last = time.monotonic()
    while True:
        event = server.next_event(_LOOK)
        if event is None:
            ended = browser.ended()
            if ended is not None:
                raise TargetError(f"target wasm failed: the browser {ended}")
            if time.monotonic() - last > timeout:
                raise TargetError(
                    f"target wasm has not answered for {timeout:g} seconds and was stopped; give it longer with "
                    "--timeout, or fewer images."
                )
            continue
        last = time.monotonic()
        if event.kind == "result":
            return event.result
        if event.kind == "failure":
            raise TargetError(f"target wasm failed. Its last words: {event.text}")
        if event.kind == "progress" and progress is not None:
            progress(event.text)


def set_up_browser(say: Callable[[str], None]) -> Path:
    """Set up ONNX Runtime Web, and try it where there is a Chromium; return its folder.

    Raises:
        TargetError: it is there already, something is lacking, or it does not work. Nothing is left behind then.
        OutputError: the folder cannot be written.
    """
    return set_up_runtime(say, _try)


def _try(files: Mapping[str, Path]) -> None:
    """Run a model of two operators. A machine without a browser may still serve the page to phones."""
    try:
        find_chromium()
    except TargetError:
        return
    with tempfile.TemporaryDirectory() as folder:
        model, images = write_trial(Path(folder))
        run_in_browser(model, images, RunOptions(timeout=_TRIAL_TIMEOUT), files=files)
