"""Measure latency: several models side by side, interleaved, so that interference affects all alike.

`rounds` measures. Before that, each model is loaded and run in processes of its own, which gives its load time and peak
memory, and keeps a model that crashes or hangs away from the others.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qil_deploy.errors import ConfigError, ModelFileError
from qil_deploy.onnx_io import read_model
from qil_deploy.reference import FLOAT32, INT8
from qil_deploy.runtime_tests.environment import describe_environment
from qil_deploy.runtime_tests.kernel_library import KernelLibrary, operators_in
from qil_deploy.runtime_tests.machine import activity_between, describe_machine, read_ticks
from qil_deploy.runtime_tests.reports import ModelFile
from qil_deploy.runtime_tests.sessions import require_model_file

from .macs import arithmetic_of, count_macs
from .noise import machine_warnings
from .options import BenchOptions, check_unique
from .peak import measure_peak
from .pinning import usable_cpus
from .profiler import profile_model
from .report import BenchReport, Failure, ModelCost, Peak
from .rounds import (
    Clock,
    Progress,
    Row,
    Setting,
    Slot,
    load_models,
    measure_rounds,
    require_any,
    samples_of,
    setting_warnings,
    settings_of,
)
from .statistics import bench_report
from .trial import TrialOptions, try_model, try_runtime


def benchmark(
    paths: Sequence[Path],
    options: BenchOptions | None = None,
    *,
    kernels: KernelLibrary | None = None,
    clock: Clock = time.perf_counter_ns,
    progress: Progress | None = None,
) -> BenchReport:
    """Measure the latency of ONNX models in ONNX Runtime's default optimization level.

    The models need not be exported by this project. Interrupted (Ctrl-C) after the first measured round, it returns
    what it has, with a warning.

    Args:
        paths: ONNX files; ratios refer to the first.
        options: how to measure.
        kernels: a library of kernels: files with low-bit convolutions are measured without it, and with each
            of its sets that this processor can run and that has kernels for them.
        clock: returns nanoseconds.
        progress: called with each step.

    Returns:
        The report. Models that cannot be loaded or run, crash or hang are listed in its `failures`.

    Raises:
        ConfigError: no model is given, or one twice, or the clock does not advance.
        ModelFileError: a file is missing, or none of them can be measured.
    """
    options = options or BenchOptions()
    check_models(paths)
    tell = progress or (lambda *_: None)
    machine, environment = describe_machine(), describe_environment()
    rows = [row for path in paths for row in _rows(path, kernels)]
    costs, failures = _try_models(rows, options, tell)
    settings = settings_of(options, machine.last_level_bytes)
    slots = load_models(costs, settings, options, failures)
    peaks = _measure_peaks(costs, settings, clock)
    used = tuple(sorted({cpu for setting in settings for cpu in setting.cpus or usable_cpus()}))
    before = read_ticks(used)
    rounds = measure_rounds(slots, options, clock, failures, tell)
    activity = activity_between(used, before, read_ticks(used))
    samples = samples_of(slots, settings, costs, failures, rounds)
    warnings = setting_warnings(settings)
    if rounds < options.repeats:
        warnings.append(f"interrupted after {rounds} of {options.repeats} rounds; the unfinished one does not count.")
    warnings += machine_warnings(
        machine, activity, threads=max(options.threads), processors=os.cpu_count() or environment.cpus
    )
    report = bench_report(
        options,
        samples,
        environment=environment,
        machine=machine,
        activity=activity,
        peaks=peaks,
        failures=[Failure(path=str(row.path), reason=reason) for row, reason in failures.items()],
        warnings=warnings,
    )
    return _with_profiles(report, slots, tell) if options.profile else report


def _rows(path: Path, kernels: KernelLibrary | None) -> list[Row]:
    """Return the rows to measure for a file."""
    rows = [Row(path)]
    if kernels is not None:
        sets = kernels.runnable_sets(_low_bit_operators(path))
        rows += [Row(path, replace(kernels, kernel_set=name)) for name in sets]
    return rows


def _low_bit_operators(path: Path) -> set[str]:
    try:
        return operators_in(read_model(path, left_out=[]))
    except ModelFileError:  # reported when it is tried
        return set()


def check_models(paths: Sequence[Path]) -> None:
    """Raise unless there are models, each once, and their files.

    Raises:
        ConfigError: no model is given, or one twice.
        ModelFileError: a file is missing.
    """
    if not paths:
        raise ConfigError("no model to measure; name at least one ONNX file.")
    check_unique("models", [str(path) for path in paths])
    for path in paths:
        require_model_file(path)


def _try_models(
    rows: Sequence[Row], options: BenchOptions, progress: Progress
) -> tuple[dict[Row, ModelCost], dict[Row, str]]:
    """Run each model in processes of its own; return their costs, and the reasons of failures."""
    costs: dict[Row, ModelCost] = {}
    failures: dict[Row, str] = {}
    runtime_bytes = try_runtime(options.timeout)
    trial_options = TrialOptions(
        threads=options.threads[0],
        batch=options.batch,
        seed=options.seed,
        processes=options.processes,
        timeout=options.timeout,
    )
    for number, row in enumerate(rows):
        progress("loading each model in a process of its own", number, len(rows))
        try:
            model = row.file
            trial = try_model(row.path, replace(trial_options, kernels=row.kernels))
        except OSError as error:
            failures[row] = f"{row.path} cannot be read: {error.strerror or error}."
        except ModelFileError as error:
            failures[row] = str(error)
        else:
            costs[row] = replace(
                describe_work(row.path, model),
                load_ms=trial.load_ms,
                first_run_ms=trial.first_run_ms,
                peak_bytes=trial.peak_bytes,
                runtime_bytes=runtime_bytes,
            )
    require_any(costs, failures)
    return costs, failures


def describe_work(path: Path, model: ModelFile) -> ModelCost:
    """Count a model's multiplications, and find their arithmetic, as far as the file allows."""
    macs, unknown, arithmetic = None, None, None
    try:
        macs = count_macs(path)
        arithmetic = arithmetic_of(path)
    except ModelFileError as error:
        unknown = str(error)
    return ModelCost(model=model, macs=macs, macs_unknown=unknown, arithmetic=arithmetic)


def _measure_peaks(costs: dict[Row, ModelCost], settings: Sequence[Setting], clock: Clock) -> list[Peak]:
    kinds = [kind for kind in (INT8, FLOAT32) if any(cost.arithmetic == kind for cost in costs.values())]
    cpus = {setting.threads: setting.cpus for setting in settings}
    return [measure_peak(kind, threads, cpus[threads], clock) for threads in cpus for kind in kinds]


def _with_profiles(report: BenchReport, slots: Sequence[Slot], progress: Progress) -> BenchReport:
    """Add the profile of each model with each number of threads; warn if there is none."""
    models = {cost.model.label: cost.model for cost in report.models}
    labels = {slot.loaded.row: slot.loaded.row.file.label for slot in slots}
    chosen = {(label, slot.setting.threads): slot for slot in slots if (label := labels[slot.loaded.row]) in models}
    profiles, warnings = [], []
    for number, ((label, threads), slot) in enumerate(chosen.items()):
        progress("profiling", number, len(chosen))
        try:
            profiles.append(
                profile_model(
                    models[label],
                    slot.loaded.inputs,
                    threads=threads,
                    cpus=slot.setting.cpus,
                    kernels=slot.loaded.row.kernels,
                )
            )
        except ModelFileError as error:
            warnings.append(str(error))
        except KeyboardInterrupt:
            warnings.append(f"profiling was interrupted after {len(profiles)} of {len(chosen)} profiles.")
            break
    return replace(report, profiles=tuple(profiles), warnings=(*report.warnings, *warnings))
