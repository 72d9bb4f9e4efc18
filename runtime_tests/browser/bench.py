"""Latency in a browser: the rounds of `bench` in ONNX Runtime Web, evaluated by the same statistics.

A page can choose its number of threads once. So each setting (number of threads) has a browser of its own, one after
the other; within it, models are interleaved round by round as on the machine itself. Inputs are drawn by the same rule
and seed as there.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from qil_deploy.errors import ConfigError, ModelFileError, TargetError
from qil_deploy.runtime_tests.bench.inputs import random_inputs
from qil_deploy.runtime_tests.bench.noise import machine_warnings
from qil_deploy.runtime_tests.bench.options import BenchOptions
from qil_deploy.runtime_tests.bench.pinning import usable_cpus
from qil_deploy.runtime_tests.bench.report import WARM, BenchReport, Failure, ModelCost
from qil_deploy.runtime_tests.bench.run import check_models, describe_work
from qil_deploy.runtime_tests.bench.statistics import Samples, bench_report
from qil_deploy.runtime_tests.environment import describe_environment
from qil_deploy.runtime_tests.machine import activity_between, describe_machine, read_ticks
from qil_deploy.runtime_tests.phone.read_result import read_result
from qil_deploy.runtime_tests.phone.server import PageServer, Service, page_resources
from qil_deploy.runtime_tests.phone.wait_for_result import Patience, wait_for_result
from qil_deploy.runtime_tests.phone.web_runtime import VERSION, runtime_files
from qil_deploy.runtime_tests.reports import ModelFile
from qil_deploy.runtime_tests.sessions import create_session
from qil_deploy.runtime_tests.targets.checks import check_environment, check_word, expect, within
from qil_deploy.runtime_tests.targets.report import DeviceEnvironment

from .chromium import browser_at

NAME: Final = "wasm"
_ELEMENTS = ("uint8", "int8", "int32", "int64", "bool", "float32", "float64")
_MAX_NS = 1e15

Progress = Callable[[str, int, int], None]
_Inputs = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class BrowserSamples:
    """Message of the page with its samples.

    Attributes:
        schema: `SCHEMA`.
        threads: how many there were.
        runs_ns: for each model its measured runs, one per round; none where it could not be run.
        control_ns: of the second run in each round of the first model that could.
        reasons: for each model why it could not be run, or None.
        environment: as on devices.
    """

    SCHEMA: ClassVar[str] = "qil_deploy.browser_samples/1"

    schema: str
    threads: int
    runs_ns: tuple[tuple[int, ...], ...]
    control_ns: tuple[int, ...]
    reasons: tuple[str | None, ...]
    environment: DeviceEnvironment


def benchmark_in_browser(
    paths: Sequence[Path], options: BenchOptions, *, progress: Progress | None = None
) -> BenchReport:
    """Measure the latency of ONNX models in a headless Chromium.

    The models need not be exported by this project. A number of threads with which the browser fails or falls silent
    is one of the failures. Ctrl-C ends the measurement; what was finished before is reported, with a warning.

    Args:
        paths: ONNX files; ratios refer to the first.
        options: how to measure; caches are warm, and `timeout` is how long the page may show no progress.
        progress: called with each step.

    Raises:
        ConfigError: no model is given, or one twice; caches other than warm, or a profile, are asked for; or the clock
            does not advance.
        ModelFileError: a file is missing, or none of them can be measured.
        TargetError: something is not set up, or the first browser fails or falls silent.
    """
    check_models(paths)
    if options.caches != (WARM,) or options.profile:
        raise ConfigError("in a browser caches are warm and there is no profiler; leave --caches and --profile out.")
    runtime = runtime_files()
    failures: dict[Path, str] = {}
    drawn = _draw_inputs(paths, options, failures)
    machine, environment = describe_machine(), describe_environment()
    used = usable_cpus()
    before = read_ticks(used)
    found, warnings = _measure_all(drawn, options, runtime, failures, progress or (lambda *_: None))
    # The browser's processes do not count as this one's children, so that others' share is not known.
    activity = replace(activity_between(used, before, read_ticks(used)), others=None)
    costs = {path: describe_work(path, ModelFile.of(path)) for path in drawn if path not in failures}
    warnings += ["a browser's threads are not pinned, and its clock has steps of 5 microseconds."]
    warnings += machine_warnings(
        machine, activity, threads=max(options.threads), processors=os.cpu_count() or environment.cpus
    )
    return bench_report(
        options,
        [_samples(samples, list(drawn), costs) for samples in found],
        environment=replace(environment, onnxruntime=found[0].environment.onnxruntime),
        machine=machine,
        activity=activity,
        failures=[Failure(path=str(path), reason=reason) for path, reason in failures.items()],
        warnings=warnings,
    )


def _draw_inputs(paths: Sequence[Path], options: BenchOptions, failures: dict[Path, str]) -> dict[Path, _Inputs]:
    """Draw the inputs of each model, or report why that fails."""
    drawn: dict[Path, _Inputs] = {}
    for path in paths:
        try:
            session = create_session(path, level="disabled")
            inputs = random_inputs(session, batch=options.batch, seed=options.seed, path=path)
            odd = [name for name, value in inputs.items() if str(value.dtype) not in _ELEMENTS]
            if odd:
                raise ModelFileError(
                    f"input {odd[0]!r} of {path} is {inputs[odd[0]].dtype}; a browser takes {', '.join(_ELEMENTS)}."
                )
            drawn[path] = inputs
        except ModelFileError as error:
            failures[path] = str(error)
    if not drawn:
        raise ModelFileError(" ".join(failures.values()))
    return drawn


def _measure_all(
    drawn: dict[Path, _Inputs],
    options: BenchOptions,
    runtime: Mapping[str, Path],
    failures: dict[Path, str],
    progress: Progress,
) -> tuple[list[BrowserSamples], list[str]]:
    """Measure one setting after another; keep the finished ones if one fails."""
    found: list[BrowserSamples] = []
    paths = list(drawn)
    for threads in options.threads:
        try:
            samples = _measure(drawn, threads, options, runtime, progress)
        except KeyboardInterrupt:
            if not found:
                raise
            return found, [f"interrupted; nothing was measured with threads {threads} and what follows."]
        except TargetError as error:
            if not found:
                raise
            failures[Path(f"{NAME}, threads {threads}")] = f"nothing was measured with threads {threads}: {error}"
            continue
        for path, reason_or_none in zip(paths, samples.reasons, strict=True):
            if reason_or_none is not None:
                failures[path] = f"{path} cannot be run in a browser: {reason_or_none}"
        if all(path in failures for path in paths):
            raise ModelFileError(" ".join(failures.values()))
        found.append(samples)
    return found, []


def _measure(
    drawn: dict[Path, _Inputs], threads: int, options: BenchOptions, runtime: Mapping[str, Path], progress: Progress
) -> BrowserSamples:
    """Measure with a given number of threads."""
    service = bench_service(drawn, threads, options, runtime)
    with PageServer(service) as server, browser_at(server.url("127.0.0.1"), options.timeout) as browser:
        patience = Patience(
            name=f"target {NAME}",
            timeout=options.timeout,
            silence=f"has not answered for {options.timeout:g} seconds and was stopped; give it longer with --timeout.",
            ended=browser.ended,
        )
        samples: BrowserSamples = wait_for_result(server, patience, partial(_tell, progress, threads))
        return samples


def _tell(progress: Progress, threads: int, words: str) -> None:
    """Report the page's "measuring: 3 of 110" as progress."""
    told = re.fullmatch(r"(\w+): (\d{1,9}) of (\d{1,9})", words)
    if told is not None:
        progress(f"{NAME}, threads {threads}: {told[1]}", int(told[2]), int(told[3]))


def bench_service(
    drawn: Mapping[Path, _Inputs], threads: int, options: BenchOptions, runtime: Mapping[str, Path]
) -> Service:
    """Return the service with which the server measures models in one setting.

    Args:
        drawn: the inputs of each model.
        threads: of the runtime.
        options: how to measure.
        runtime: files of ONNX Runtime Web.
    """
    generator = np.random.default_rng(options.seed)
    rounds = options.warmup + options.repeats
    job = {
        "schema": BrowserSamples.SCHEMA,
        "threads": threads,
        "warmup": options.warmup,
        # One more than there are models: the first one's control.
        "orders": [generator.permutation(len(drawn) + 1).tolist() for _ in range(rounds)],
        "models": [
            {"inputs": [_describe_input(name, value) for name, value in inputs.items()]} for inputs in drawn.values()
        ],
    }
    resources = page_resources("bench.html", runtime)
    resources["job.json"] = json.dumps(job).encode()
    for index, (path, inputs) in enumerate(drawn.items()):
        resources[f"model-{index}"] = path.read_bytes
        resources[f"inputs-{index}"] = b"".join(value.tobytes() for value in inputs.values())
    check = partial(_check, threads=threads, models=len(drawn), repeats=options.repeats)
    return Service(
        resources=resources,
        accept=partial(read_result, report_class=BrowserSamples, check=check, expected="not of this measurement"),
        largest_result=2**16 + 20 * (len(drawn) + 1) * options.repeats + 4096 * len(drawn),
    )


def _describe_input(name: str, value: NDArray[Any]) -> dict[str, Any]:
    return {"name": name, "dtype": str(value.dtype), "shape": value.shape}


def _check(samples: BrowserSamples, threads: int, models: int, repeats: int) -> None:
    expect("threads", samples.threads, threads)
    expect("models", (len(samples.runs_ns), len(samples.reasons)), (models, models))
    check_environment(samples.environment, browser=True)
    for runs, reason in zip(samples.runs_ns, samples.reasons, strict=True):
        expect("runs", len(runs), 0 if reason is not None else repeats)
        check_word("a reason", reason or "")
    expect("runs of the control", len(samples.control_ns), 0 if None not in samples.reasons else repeats)
    for elapsed in (*(elapsed for runs in samples.runs_ns for elapsed in runs), *samples.control_ns):
        within("a time", elapsed, 0, _MAX_NS)


def _samples(samples: BrowserSamples, paths: Sequence[Path], costs: Mapping[Path, ModelCost]) -> Samples:
    """Return the samples of models that ran in every setting, in the form that the statistics take."""
    kept = [(path, runs) for path, runs in zip(paths, samples.runs_ns, strict=True) if path in costs]
    first = next(path for path, reason in zip(paths, samples.reasons, strict=True) if reason is None)
    return Samples(
        target=f"{NAME} ({browser_name(samples.environment.browser)})",
        threads=samples.threads,
        caches=WARM,
        models=tuple(costs[path] for path, _ in kept),
        runs_ns=tuple(runs for _, runs in kept),
        control_ns=samples.control_ns if first in costs else (),
    )


def browser_name(user_agent: str | None) -> str:
    """Return a browser's name and version from its own description."""
    found = re.search(r"(Chrome|Firefox|Version)/(\d+)", user_agent or "")
    return f"ONNX Runtime Web {VERSION}" if found is None else f"{found[1]} {found[2]}"
