"""Count the instructions of one inference on an emulated processor, unaffected by the load of the machine.

Each model runs in two processes, one after the other. What lies between two marks of a process is one inference; what
Python and ONNX Runtime execute to start and to load is before the first mark and not in it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from qil_deploy.errors import ConfigError, DataError, ModelFileError, TargetError
from qil_deploy.reports import read_report
from qil_deploy.runtime_tests import device_program
from qil_deploy.runtime_tests.bench.inputs import random_inputs
from qil_deploy.runtime_tests.bench.options import check_least, check_timeout
from qil_deploy.runtime_tests.bench.report import Failure
from qil_deploy.runtime_tests.bench.run import check_models
from qil_deploy.runtime_tests.bench.trial import TrialOptions, try_model
from qil_deploy.runtime_tests.device_report import DeviceEnvironment, GuestReport
from qil_deploy.runtime_tests.sessions import create_session
from qil_deploy.runtime_tests.targets.catalogue import Emulator, Target, emulator_python, target_state
from qil_deploy.runtime_tests.targets.kernels import why_no_kernels
from qil_deploy.runtime_tests.targets.worker_process import Command, quoted, run_worker

from .counter import counted_python, counter_folder, counter_state
from .report import Counts, InstructionsReport, differences, summarize, unsteady

GUEST = Path(__file__).with_name("guest.py")
_PROCESSES = 2

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class CountOptions:
    """Options for counting.

    Attributes:
        batch: images per run, for models whose first dimension is free.
        repeats: counted runs of each process.
        warmup: runs before them.
        seed: of the random inputs.
        timeout: seconds without a sign of progress after which a process is given up.
        kernels: a library of kernels for the emulated processor, which every session registers; None for none.

    Raises:
        ConfigError: one of them is out of range, or there is no such library.
    """

    batch: int = 1
    repeats: int = 3
    warmup: int = 1
    seed: int = 0
    timeout: float = 600.0
    kernels: Path | None = None

    def __post_init__(self) -> None:
        for name, least in {"batch": 1, "repeats": 1, "warmup": 0, "seed": 0}.items():
            check_least(name, getattr(self, name), least)
        check_timeout(self.timeout)
        if self.kernels is not None and not self.kernels.is_file():
            raise ConfigError(f"there is no library of kernels {self.kernels}; build it or correct the path.")


@dataclass(kw_only=True)
class _Findings:
    """Results so far."""

    counts: dict[Path, Counts] = field(default_factory=dict)
    failures: dict[Path, str] = field(default_factory=dict)
    environment: DeviceEnvironment | None = None
    interrupted: bool = False


def count_instructions(
    paths: Sequence[Path], target: Target, options: CountOptions, *, progress: Progress | None = None
) -> InstructionsReport:
    """Count the instructions that one inference of each model executes, on one thread.

    The models need not be exported by this project. What was counted before a model fails, falls silent, or Ctrl-C
    is pressed is in the report.

    Args:
        paths: ONNX files; ratios refer to the first.
        target: an emulated one.
        options: how to count.
        progress: called with each step.

    Raises:
        ConfigError: no model is given, or one twice.
        ModelFileError: a file is missing.
        TargetError: the target is not emulated, or it or what counts is not set up, or the library is not built for it.
    """
    check_models(paths)
    emulator = check_target(target)
    unloadable = None if options.kernels is None else why_no_kernels(target, options.kernels)
    if unloadable is not None:
        raise TargetError(f"target {target.name} cannot run: {unloadable}")
    findings = _Findings()
    with tempfile.TemporaryDirectory() as folder:
        try:
            for path in paths:
                _count(path, emulator, str(target.cpu), options, Path(folder), findings, progress or (lambda *_: None))
        except KeyboardInterrupt:
            if not findings.counts:
                raise
            findings.interrupted = True
    models = summarize(list(findings.counts.items()))
    return InstructionsReport(
        schema=InstructionsReport.SCHEMA,
        target=target.name,
        batch=options.batch,
        processes=_PROCESSES,
        repeats=options.repeats,
        warmup=options.warmup,
        seed=options.seed,
        models=models,
        failures=tuple(Failure(path=str(path), reason=reason) for path, reason in findings.failures.items()),
        warnings=(*unsteady(models), *(["counting was interrupted."] if findings.interrupted else [])),
        interrupted=findings.interrupted,
        kernels=None if options.kernels is None else str(options.kernels),
        environment=findings.environment,
    )


def check_target(target: Target) -> Emulator:
    """Return the emulator of a target whose instructions can be counted.

    Raises:
        TargetError: it has none, or something is not set up.
    """
    if target.emulator is None:
        raise TargetError(f"instructions are counted on emulated targets; {target.name} is none.")
    reason = target_state(target)
    if reason is not None:
        raise TargetError(f"target {target.name} cannot run: {reason}")
    reason = counter_state()
    if reason is not None:
        raise TargetError(f"instructions cannot be counted: {reason}")
    return target.emulator


def _count(
    path: Path,
    emulator: Emulator,
    cpu: str,
    options: CountOptions,
    folder: Path,
    findings: _Findings,
    progress: Progress,
) -> None:
    """Run one model in all of its processes; add their counts, or the reasons of failures."""
    inputs, marks, output = folder / "inputs.npz", folder / "marks", folder / "guest.json"
    program = folder / device_program.NAME
    try:
        # Models that crash ONNX Runtime do so in another process.
        try_model(
            path, TrialOptions(threads=1, batch=options.batch, seed=options.seed, processes=1, timeout=options.timeout)
        )
        session = create_session(path, level="disabled")
        drawn = random_inputs(session, batch=options.batch, seed=options.seed, path=path)
        np.savez(inputs, allow_pickle=False, **{str(index): value for index, value in enumerate(drawn.values())})
        device_program.write_device_program(program)
        for process in range(_PROCESSES):
            marks.unlink(missing_ok=True)
            python = counted_python(emulator, cpu, emulator_python(emulator), marks, counter_folder())
            command = python.and_then(GUEST, program, path.absolute(), inputs, options.warmup, options.repeats, cpu)
            if options.kernels is not None:
                command = command.and_then(options.kernels.absolute())
            told = partial(_tell, progress, f"{path.name}, process {process + 1} of {_PROCESSES}")
            try:
                _run(command, path, output, options.timeout, told)
                findings.environment = read_report(output, GuestReport).environment
            finally:  # what was counted before it failed counts
                runs = read_runs(marks, path)
                if runs:
                    findings.counts[path] = (*findings.counts.get(path, ()), runs)
    except (ModelFileError, TargetError, DataError) as error:
        findings.failures[path] = str(error)


def _run(command: Command, path: Path, output: Path, timeout: float, progress: Callable[[str], None]) -> None:
    """Run the worker to its end.

    Raises:
        TargetError: it fails or falls silent.
    """
    code, last_words = run_worker(command, output, timeout, progress)
    if code is None:
        raise TargetError(
            f"{path} has shown no progress for {timeout:g} seconds in the emulator and was stopped; give it longer "
            f"with --timeout.{quoted(last_words)}"
        )
    if code != 0:
        raise TargetError(f"{path} cannot be run in the emulator, exit code {code}.{quoted(last_words)}")


def _tell(progress: Progress, what: str, words: str) -> None:
    """Report the worker's "counting: 1 of 3 runs" as progress."""
    told = re.fullmatch(r"([\w-]+): (\d+) of (\d+) runs", words)
    if told is not None:
        progress(f"{what}: {told[1]}", int(told[2]), int(told[3]))


def read_runs(marks: Path, path: Path) -> tuple[int, ...]:
    """Return the instructions of each run that a process finished, from the plugin's output.

    Raises:
        TargetError: more than one thread ran.
    """
    if not marks.is_file():
        return ()
    lines = re.findall(r"^(\d+) (\d+)\n", marks.read_text(encoding="ascii"), re.MULTILINE)
    threads = max((int(threads) for _, threads in lines), default=1)
    if threads > 1:
        raise TargetError(f"{path} ran on {threads} threads, of which the plugin may lose instructions.")
    return differences([int(instructions) for instructions, _ in lines])
