"""How long does one inference take? Several models side by side, interleaved, so that a busy moment hits all.

Each round runs every model once per thread count, in an order drawn anew; the warm-up rounds are not counted.
All times are read from one clock that returns nanoseconds and can be replaced.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from qil_deploy.errors import ConfigError, ModelFileError

from .environment import Environment, describe_environment
from .reports import ModelFile
from .sessions import create_session, run_session

Clock = Callable[[], int]

_INTEGERS = {"tensor(uint8)": np.uint8, "tensor(int8)": np.int8}
_FLOATS = {"tensor(float)": np.float32}
_MILLISECOND = 1e6


@dataclass(frozen=True, kw_only=True)
class Latency:
    """One model with one number of threads.

    Attributes:
        model: the file.
        threads: threads of ONNX Runtime.
        load_ms: time to create the session, file cache warm.
        median_ms, p95_ms, min_ms: of the measured runs.
        iqr_ms: spread: 75th minus 25th percentile.
        ratio: median divided by the first model's median with as many threads.
        samples_ns: every measured run, in the order they were made.
    """

    model: ModelFile
    threads: int
    load_ms: float
    median_ms: float
    p95_ms: float
    min_ms: float
    iqr_ms: float
    ratio: float
    samples_ns: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """Outcome of `benchmark`.

    Attributes:
        schema: `SCHEMA`.
        batch: images per run.
        repeats, warmup: measured rounds, and rounds before them that are not counted.
        seed: of the inputs and of the order within a round.
        latencies: models in the order given, for each number of threads in the order given.
        environment: versions and processor.
    """

    SCHEMA: ClassVar[str] = "qil_deploy.bench/1"

    schema: str
    batch: int
    repeats: int
    warmup: int
    seed: int
    latencies: tuple[Latency, ...]
    environment: Environment


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """One model, loaded with one number of threads, and its input."""

    path: Path
    threads: int
    session: onnxruntime.InferenceSession
    load_ns: int
    inputs: dict[str, NDArray[Any]]


def benchmark(
    paths: Sequence[Path],
    *,
    threads: Sequence[int] = (1,),
    batch: int = 1,
    repeats: int = 100,
    warmup: int = 10,
    seed: int = 0,
    clock: Clock = time.perf_counter_ns,
) -> BenchReport:
    """Measure the latency of ONNX models in ONNX Runtime's default optimization level.

    The models need not be exported by this project.

    Args:
        paths: ONNX files; ratios refer to the first.
        threads: thread counts to measure with.
        batch: images per run, for models whose first dimension is free.
        repeats: measured runs of each model with each thread count.
        warmup: runs before them that are not counted.
        seed: of the random inputs and of the order of the models.
        clock: returns nanoseconds.

    Raises:
        ConfigError: an option is out of range, or no model is given.
        ModelFileError: a file is missing, cannot be loaded or run, or has an input that `random_inputs`
            refuses.
    """
    _check_options(paths, threads, batch, repeats, warmup)
    candidates = [_load(path, count, batch, seed, clock) for count in threads for path in paths]
    samples = _measure(candidates, repeats=repeats, warmup=warmup, seed=seed, clock=clock)
    files = {path: ModelFile.of(path) for path in paths}
    medians = [float(np.median(runs)) for runs in samples]
    latencies = []
    for index, (candidate, runs) in enumerate(zip(candidates, samples, strict=True)):
        first = medians[index - index % len(paths)]
        if first <= 0:
            raise ConfigError(f"the clock did not advance while {paths[0]} ran; measure with a finer clock.")
        quarter, three_quarters, p95 = np.percentile(runs, [25, 75, 95]) / _MILLISECOND
        latencies.append(
            Latency(
                model=files[candidate.path],
                threads=candidate.threads,
                load_ms=candidate.load_ns / _MILLISECOND,
                median_ms=medians[index] / _MILLISECOND,
                p95_ms=float(p95),
                min_ms=min(runs) / _MILLISECOND,
                iqr_ms=float(three_quarters - quarter),
                ratio=medians[index] / first,
                samples_ns=tuple(runs),
            )
        )
    return BenchReport(
        schema=BenchReport.SCHEMA,
        batch=batch,
        repeats=repeats,
        warmup=warmup,
        seed=seed,
        latencies=tuple(latencies),
        environment=describe_environment(),
    )


def random_inputs(
    session: onnxruntime.InferenceSession, *, batch: int, seed: int, path: Path
) -> dict[str, NDArray[Any]]:
    """Draw one value for each input of a session: integers over their whole range, floats from N(0, 1).

    A free first dimension becomes `batch`.

    Raises:
        ModelFileError: an input's type is not uint8, int8 or float32, its first dimension is fixed at another
            batch, or another dimension is free.
    """
    generator = np.random.default_rng(seed)
    inputs: dict[str, NDArray[Any]] = {}
    for tensor in session.get_inputs():
        shape = list(tensor.shape)
        if shape and not isinstance(shape[0], int):
            shape[0] = batch
        if not shape or shape[0] != batch or not all(isinstance(size, int) for size in shape):
            raise ModelFileError(
                f"input {tensor.name!r} of {path} has shape {tensor.shape}; a batch of {batch} needs a first "
                f"dimension that is free or {batch}, and all others fixed."
            )
        if tensor.type in _INTEGERS:
            dtype = _INTEGERS[tensor.type]
            limits = np.iinfo(dtype)
            inputs[tensor.name] = generator.integers(limits.min, limits.max, shape, dtype, endpoint=True)
        elif tensor.type in _FLOATS:
            inputs[tensor.name] = generator.standard_normal(shape, _FLOATS[tensor.type])
        else:
            raise ModelFileError(
                f"input {tensor.name!r} of {path} is a {tensor.type}; inputs can be drawn for "
                f"{', '.join([*_INTEGERS, *_FLOATS])}."
            )
    return inputs


def _check_options(paths: Sequence[Path], threads: Sequence[int], batch: int, repeats: int, warmup: int) -> None:
    if not paths:
        raise ConfigError("no model to measure; name at least one ONNX file.")
    if not threads:
        raise ConfigError("no number of threads; name at least one.")
    for name, values in (("models", [str(path) for path in paths]), ("threads", list(threads))):
        if len(set(values)) != len(values):
            raise ConfigError(f"{name} are {values}; name each once.")
    for name, value, least in (("batch", batch, 1), ("repeats", repeats, 1), ("warmup", warmup, 0)):
        if value < least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}.")


def _load(path: Path, threads: int, batch: int, seed: int, clock: Clock) -> _Candidate:
    # A first, discarded load reads the file and starts the runtime: no model pays for being the first.
    create_session(path, threads=threads)
    start = clock()
    session = create_session(path, threads=threads)
    load_ns = clock() - start
    return _Candidate(
        path=path,
        threads=threads,
        session=session,
        load_ns=load_ns,
        inputs=random_inputs(session, batch=batch, seed=seed, path=path),
    )


def _measure(
    candidates: Sequence[_Candidate], *, repeats: int, warmup: int, seed: int, clock: Clock
) -> list[list[int]]:
    """Run `warmup + repeats` rounds and return, per candidate, the nanoseconds of its last `repeats` runs."""
    generator = np.random.default_rng(seed)
    samples: list[list[int]] = [[] for _ in candidates]
    for round_number in range(warmup + repeats):
        for index in generator.permutation(len(candidates)):
            candidate = candidates[index]
            start = clock()
            run_session(candidate.session, candidate.inputs, path=candidate.path)
            elapsed = clock() - start
            if round_number >= warmup:
                samples[index].append(elapsed)
    return samples
