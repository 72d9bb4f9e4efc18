"""Measure how long one inference takes: several models side by side, interleaved, so that a busy moment hits all.

Each round runs every model once in every setting (number of threads, state of the caches), in an order drawn anew, and
the first model a second time as its own control; the warm-up rounds are not counted. Right before a measured run, the
same model runs once uncounted (caches warm), or a large buffer is read (caches cold). All times are read from one clock
that returns nanoseconds and can be replaced.

Before that, each model is loaded and run in processes of its own, which tells its load time and peak memory, and keeps
a model that crashes or hangs away from the others.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from qil_deploy.errors import ConfigError, ModelFileError
from qil_deploy.onnx_io import read_model
from qil_deploy.reference import FLOAT32, INT8
from qil_deploy.runtime_tests.environment import describe_environment
from qil_deploy.runtime_tests.kernel_library import KernelLibrary, operators_in
from qil_deploy.runtime_tests.machine import activity_between, describe_machine, read_ticks
from qil_deploy.runtime_tests.reports import ModelFile
from qil_deploy.runtime_tests.sessions import create_session, require_model_file, run_session

from .eviction import CacheEvictor
from .inputs import random_inputs
from .macs import arithmetic_of, count_macs
from .noise import machine_warnings
from .options import BenchOptions, check_unique
from .peak import measure_peak
from .pinning import choose_cpus, pinned, usable_cpus
from .profiler import profile_model
from .report import COLD, WARM, BenchReport, Failure, ModelCost, Peak
from .statistics import Samples, bench_report
from .trial import TrialOptions, try_model, try_runtime

Clock = Callable[[], int]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """One number of threads, the processors they are pinned to, and one state of the caches (cold: with an evictor)."""

    threads: int
    cpus: tuple[int, ...]
    evictor: CacheEvictor | None


@dataclass(frozen=True)
class _Row:
    """One file, and the kernel library that computes its low-bit convolutions; without one, ONNX Runtime does."""

    path: Path
    kernels: KernelLibrary | None = None

    @property
    def file(self) -> ModelFile:
        """What the report says of it."""
        return replace(ModelFile.of(self.path), kernels="" if self.kernels is None else self.kernels.kernel_set)


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """One model, loaded with one number of threads, and its input."""

    row: _Row
    session: onnxruntime.InferenceSession
    inputs: dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class _Slot:
    """One run in each round, and what it took so far."""

    setting: _Setting
    loaded: _Loaded
    control: bool
    samples: list[int] = field(default_factory=list)


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
        progress: told how far it is.

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
    settings = _settings(options, machine.last_level_bytes)
    slots = _load_models(costs, settings, options, failures)
    peaks = _measure_peaks(costs, settings, clock)
    used = tuple(sorted({cpu for setting in settings for cpu in setting.cpus or usable_cpus()}))
    before = read_ticks(used)
    rounds = _measure(slots, options, clock, failures, tell)
    activity = activity_between(used, before, read_ticks(used))
    samples = _samples(slots, settings, costs, failures, rounds)
    warnings = _setting_warnings(settings)
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


def _rows(path: Path, kernels: KernelLibrary | None) -> list[_Row]:
    """Return what is measured of a file."""
    rows = [_Row(path)]
    if kernels is not None:
        sets = kernels.runnable_sets(_low_bit_operators(path))
        rows += [_Row(path, replace(kernels, kernel_set=name)) for name in sets]
    return rows


def _low_bit_operators(path: Path) -> set[str]:
    try:
        return operators_in(read_model(path, left_out=[]))
    except ModelFileError:  # which is said when it is tried
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
    rows: Sequence[_Row], options: BenchOptions, progress: Progress
) -> tuple[dict[_Row, ModelCost], dict[_Row, str]]:
    """Run each model in processes of its own; return what they cost, and why others failed."""
    costs: dict[_Row, ModelCost] = {}
    failures: dict[_Row, str] = {}
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
    _raise_if_none_is_left(costs, failures)
    return costs, failures


def _raise_if_none_is_left(left: Sequence[object] | dict[_Row, ModelCost], failures: dict[_Row, str]) -> None:
    if not left:
        raise ModelFileError(" ".join(failures.values()))


def describe_work(path: Path, model: ModelFile) -> ModelCost:
    """Count a model's multiplications, and say in which arithmetic it does them, as far as the file tells."""
    macs, unknown, arithmetic = None, None, None
    try:
        macs = count_macs(path)
        arithmetic = arithmetic_of(path)
    except ModelFileError as error:
        unknown = str(error)
    return ModelCost(model=model, macs=macs, macs_unknown=unknown, arithmetic=arithmetic)


def _settings(options: BenchOptions, last_level_bytes: int | None) -> list[_Setting]:
    evictor = CacheEvictor(last_level_bytes) if COLD in options.caches else None
    cpus = {threads: choose_cpus(threads, usable_cpus()) for threads in options.threads}
    return [
        _Setting(threads=threads, cpus=cpus[threads], evictor=evictor if caches == COLD else None)
        for threads in options.threads
        for caches in options.caches
    ]


def _setting_warnings(settings: Sequence[_Setting]) -> list[str]:
    free = [setting for setting in settings if not setting.cpus]
    sentences = [
        f"{threads} {'thread was' if threads == 1 else 'threads were'} not pinned: this process may use "
        f"{len(usable_cpus()) or 'an unknown number of'} processors."
        for threads in dict.fromkeys(setting.threads for setting in free)
    ]
    evictors = [setting.evictor.warning for setting in settings if setting.evictor is not None]
    return sentences + [warning for warning in dict.fromkeys(evictors) if warning is not None]


def _load_models(
    costs: dict[_Row, ModelCost], settings: Sequence[_Setting], options: BenchOptions, failures: dict[_Row, str]
) -> list[_Slot]:
    """Load each model with each number of threads; return what a round consists of."""
    loaded: dict[tuple[_Row, int], _Loaded] = {}
    for row in costs:
        try:
            for setting in settings:
                if (row, setting.threads) not in loaded:
                    session = create_session(row.path, threads=setting.threads, cpus=setting.cpus, kernels=row.kernels)
                    inputs = random_inputs(session, batch=options.batch, seed=options.seed, path=row.path)
                    loaded[row, setting.threads] = _Loaded(row=row, session=session, inputs=inputs)
        except ModelFileError as error:
            failures[row] = str(error)
    rows = [row for row in costs if row not in failures]
    _raise_if_none_is_left(rows, failures)
    return [
        _Slot(setting=setting, loaded=loaded[row, setting.threads], control=control)
        for setting in settings
        for row, control in [*((row, False) for row in rows), (rows[0], True)]
    ]


def _measure_peaks(costs: dict[_Row, ModelCost], settings: Sequence[_Setting], clock: Clock) -> list[Peak]:
    kinds = [kind for kind in (INT8, FLOAT32) if any(cost.arithmetic == kind for cost in costs.values())]
    cpus = {setting.threads: setting.cpus for setting in settings}
    return [measure_peak(kind, threads, cpus[threads], clock) for threads in cpus for kind in kinds]


def _measure(
    slots: Sequence[_Slot], options: BenchOptions, clock: Clock, failures: dict[_Row, str], progress: Progress
) -> int:
    """Run `warmup + repeats` rounds, keep the nanoseconds of the last `repeats` in the slots, and return how many.

    They are fewer only if it was interrupted. A model that fails on the way is left out from then on.
    """
    generator = np.random.default_rng(options.seed)
    rounds = 0
    try:
        for number in range(options.warmup + options.repeats):
            progress("measuring", number, options.warmup + options.repeats)
            for index in generator.permutation(len(slots)):
                slot = slots[index]
                if slot.loaded.row in failures:
                    continue
                try:
                    elapsed = _time_once(slot, clock)
                except ModelFileError as error:
                    failures[slot.loaded.row] = str(error)
                else:
                    if number >= options.warmup:
                        slot.samples.append(elapsed)
            rounds += number >= options.warmup
            _raise_if_none_is_left([slot for slot in slots if slot.loaded.row not in failures], failures)
    except KeyboardInterrupt:
        if rounds == 0:
            raise
    return rounds


def _time_once(slot: _Slot, clock: Clock) -> int:
    """Bring the caches into the state that the setting asks for, and return the nanoseconds of one run."""
    loaded = slot.loaded
    with pinned(slot.setting.cpus):
        if slot.setting.evictor is None:
            run_session(loaded.session, loaded.inputs, path=loaded.row.path)
        else:
            slot.setting.evictor.evict(slot.setting.cpus)
        start = clock()
        run_session(loaded.session, loaded.inputs, path=loaded.row.path)
        return clock() - start


def _samples(
    slots: Sequence[_Slot],
    settings: Sequence[_Setting],
    costs: dict[_Row, ModelCost],
    failures: dict[_Row, str],
    rounds: int,
) -> list[Samples]:
    result = []
    for setting in settings:
        own = [slot for slot in slots if slot.setting is setting and slot.loaded.row not in failures]
        runs = {slot.loaded.row: tuple(slot.samples[:rounds]) for slot in own if not slot.control}
        control = next((tuple(slot.samples[:rounds]) for slot in own if slot.control), ())
        result.append(
            Samples(
                threads=setting.threads,
                cpus=setting.cpus,
                caches=WARM if setting.evictor is None else COLD,
                models=tuple(costs[row] for row in runs),
                runs_ns=tuple(runs.values()),
                control_ns=control,
            )
        )
    return result


def _with_profiles(report: BenchReport, slots: Sequence[_Slot], progress: Progress) -> BenchReport:
    """Add the profile of each model with each number of threads; where there is none, a warning says so."""
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
