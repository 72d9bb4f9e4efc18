"""Rounds of a benchmark: every model once in every setting, and the time of each run.

A setting is a number of threads and the state of the caches. Each round runs in an order drawn anew, and has the first
model a second time, as its own control; warm-up rounds are not counted. Right before a measured run, the same model
runs once uncounted (caches warm), or a large buffer is read (caches cold). All times are read from one clock that
returns nanoseconds and can be replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from qil_deploy.errors import ModelFileError
from qil_deploy.runtime_tests.kernel_library import KernelLibrary
from qil_deploy.runtime_tests.reports import ModelFile
from qil_deploy.runtime_tests.sessions import create_session, run_session

from .eviction import CacheEvictor
from .inputs import random_inputs
from .options import BenchOptions
from .pinning import choose_cpus, pinned, usable_cpus
from .report import COLD, WARM, ModelCost
from .statistics import Samples

Clock = Callable[[], int]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One number of threads, the processors they are pinned to, and one state of the caches (cold: with an evictor)."""

    threads: int
    cpus: tuple[int, ...]
    evictor: CacheEvictor | None


@dataclass(frozen=True)
class Row:
    """One file, and the kernel library for its low-bit convolutions; without one, ONNX Runtime computes them."""

    path: Path
    kernels: KernelLibrary | None = None

    @property
    def file(self) -> ModelFile:
        """Describe the file in a report."""
        return replace(ModelFile.of(self.path), kernels="" if self.kernels is None else self.kernels.kernel_set)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """One model, loaded with one number of threads, and its input."""

    row: Row
    session: onnxruntime.InferenceSession
    inputs: dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One run in each round, and its times so far."""

    setting: Setting
    loaded: Loaded
    control: bool
    samples: list[int] = field(default_factory=list)


def settings_of(options: BenchOptions, last_level_bytes: int | None) -> list[Setting]:
    """Return every number of threads in every state of the caches; `last_level_bytes` is the size of the last cache."""
    evictor = CacheEvictor(last_level_bytes) if COLD in options.caches else None
    cpus = {threads: choose_cpus(threads, usable_cpus()) for threads in options.threads}
    return [
        Setting(threads=threads, cpus=cpus[threads], evictor=evictor if caches == COLD else None)
        for threads in options.threads
        for caches in options.caches
    ]


def setting_warnings(settings: Sequence[Setting]) -> list[str]:
    """Return warnings about the settings: threads that were not pinned, caches that stay warm."""
    free = [setting for setting in settings if not setting.cpus]
    sentences = [
        f"{threads} {'thread was' if threads == 1 else 'threads were'} not pinned: this process may use "
        f"{len(usable_cpus()) or 'an unknown number of'} processors."
        for threads in dict.fromkeys(setting.threads for setting in free)
    ]
    evictors = [setting.evictor.warning for setting in settings if setting.evictor is not None]
    return sentences + [warning for warning in dict.fromkeys(evictors) if warning is not None]


def load_models(
    costs: dict[Row, ModelCost], settings: Sequence[Setting], options: BenchOptions, failures: dict[Row, str]
) -> list[Slot]:
    """Load each model with each number of threads; return the slots of a round."""
    loaded: dict[tuple[Row, int], Loaded] = {}
    for row in costs:
        try:
            for setting in settings:
                if (row, setting.threads) not in loaded:
                    session = create_session(row.path, threads=setting.threads, cpus=setting.cpus, kernels=row.kernels)
                    inputs = random_inputs(session, batch=options.batch, seed=options.seed, path=row.path)
                    loaded[row, setting.threads] = Loaded(row=row, session=session, inputs=inputs)
        except ModelFileError as error:
            failures[row] = str(error)
    rows = [row for row in costs if row not in failures]
    require_any(rows, failures)
    return [
        Slot(setting=setting, loaded=loaded[row, setting.threads], control=control)
        for setting in settings
        for row, control in [*((row, False) for row in rows), (rows[0], True)]
    ]


def measure_rounds(
    slots: Sequence[Slot], options: BenchOptions, clock: Clock, failures: dict[Row, str], progress: Progress
) -> int:
    """Run `warmup + repeats` rounds, keep the nanoseconds of the last `repeats` in the slots, and return how many.

    They are fewer only if it was interrupted. A model that fails is left out from then on.
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
            require_any([slot for slot in slots if slot.loaded.row not in failures], failures)
    except KeyboardInterrupt:
        if rounds == 0:
            raise
    return rounds


def _time_once(slot: Slot, clock: Clock) -> int:
    """Prepare the caches for the setting, and return the nanoseconds of one run."""
    loaded = slot.loaded
    with pinned(slot.setting.cpus):
        if slot.setting.evictor is None:
            run_session(loaded.session, loaded.inputs, path=loaded.row.path)
        else:
            slot.setting.evictor.evict(slot.setting.cpus)
        start = clock()
        run_session(loaded.session, loaded.inputs, path=loaded.row.path)
        return clock() - start


def samples_of(
    slots: Sequence[Slot],
    settings: Sequence[Setting],
    costs: dict[Row, ModelCost],
    failures: dict[Row, str],
    rounds: int,
) -> list[Samples]:
    """Return the times of every setting, of the models that did not fail, in the first `rounds` measured rounds."""
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


def require_any(left: Sized, failures: dict[Row, str]) -> None:
    """Raise `ModelFileError` with the reasons of all failures if nothing is left to measure."""
    if not left:
        raise ModelFileError(" ".join(failures.values()))
