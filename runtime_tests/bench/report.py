"""The report of `bench`, made from any target's samples, also a browser's, by `statistics.bench_report`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qil_deploy.runtime_tests.environment import Environment
from qil_deploy.runtime_tests.machine import Activity, Machine
from qil_deploy.runtime_tests.reports import ModelFile

NATIVE = "native"
WARM, COLD = "warm", "cold"


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A bootstrap interval that covers 95 %."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """Costs of one model besides its latency.

    Attributes:
        model: the file.
        macs: multiplications with a weight for one image, as the file's operators execute them, padding included; None
            where they are not known.
        macs_unknown: why not, or None.
        arithmetic: "int8", "float32" or "mixed": what the layers with weights compute in; None where it is not known.
        load_ms: time to create the session in a process of its own, file cache warm (median over processes); None where
            that was not measured, and so below.
        first_run_ms: time of the first inference after it.
        peak_bytes: largest resident memory of that process: Python, ONNX Runtime and the model.
        runtime_bytes: the same of a process that loads no model.
    """

    model: ModelFile
    macs: int | None = None
    macs_unknown: str | None = None
    arithmetic: str | None = None
    load_ms: float | None = None
    first_run_ms: float | None = None
    peak_bytes: int | None = None
    runtime_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Highest throughput observed on this processor: a large matrix product in ONNX Runtime.

    Attributes:
        arithmetic: "int8" (uint8 codes times int8 weights) or "float32".
        threads: threads of ONNX Runtime.
        gmacs: 1e9 multiplications per second.
        operator: what was run, with its sizes.
    """

    arithmetic: str
    threads: int
    gmacs: float
    operator: str


@dataclass(frozen=True, kw_only=True)
class Latency:
    """One model in one setting: target, number of threads and state of the caches.

    Attributes:
        model: the file.
        target: "native", or what ran it instead.
        threads: threads of ONNX Runtime.
        cpus: logical processors that the threads were pinned to; none if they were not.
        caches: "warm" (the same model ran just before) or "cold" (a large buffer was read just before).
        median_ms, p95_ms, min_ms: of the measured runs.
        iqr_ms: spread: 75th minus 25th percentile.
        ratio: median divided by the first model's median in the same setting.
        ratio_interval: where the ratio lies (`statistics.ratio_interval`); None for the first model itself, and where
            there were too few rounds.
        gmacs: 1e9 multiplications per second, at the median; None where the model's are not known.
        peak_share: `gmacs` as a share of `Peak.gmacs` with the same arithmetic and threads; None where there is none.
        samples_ns: every measured run, one per round.
    """

    model: ModelFile
    target: str = NATIVE
    threads: int
    cpus: tuple[int, ...] = ()
    caches: str = WARM
    median_ms: float
    p95_ms: float
    min_ms: float
    iqr_ms: float
    ratio: float
    ratio_interval: Interval | None = None
    gmacs: float | None = None
    peak_share: float | None = None
    samples_ns: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Control:
    """The first model measured a second time in each round of a setting; its ratio to itself should be 1.

    Attributes:
        target, threads, caches: the setting.
        ratio, ratio_interval: as in `Latency`.
        samples_ns: every measured run, one per round.
    """

    target: str
    threads: int
    caches: str
    ratio: float
    ratio_interval: Interval | None
    samples_ns: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """All nodes of one operator.

    Attributes:
        operator: its type, as ONNX Runtime executes it.
        nodes: how many there are.
        median_us: time of all of them together in one run, median over the runs.
        share: of the time of all operators.
    """

    operator: str
    nodes: int
    median_us: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Time of one model by operator, from ONNX Runtime's profiler, which slows it down.

    Attributes:
        model: the file.
        threads: threads of ONNX Runtime.
        runs: how many were profiled.
        operators: the slowest first.
    """

    model: ModelFile
    threads: int
    runs: int
    operators: tuple[OperatorTime, ...]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A model that could not be measured completely, and the reason in a sentence."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """Outcome of `benchmark`.

    Attributes:
        schema: `SCHEMA`.
        batch: images per run.
        repeats, warmup: measured rounds, and rounds before them that are not counted.
        seed: of the inputs, of the order within a round and of the bootstrap.
        latencies: for each setting (threads in the order given, then caches), models in the order given.
        controls: one per setting.
        models: one per model that was measured.
        peaks: what shares refer to.
        profiles: one per model and number of threads, if they were asked for.
        failures: models that could not be measured.
        warnings: what makes these figures doubtful, in sentences.
        environment: versions and processor.
        machine: other influences of this machine.
        activity: what else ran meanwhile.
    """

    SCHEMA: ClassVar[str] = "qil_deploy.bench/2"

    schema: str
    batch: int
    repeats: int
    warmup: int
    seed: int
    latencies: tuple[Latency, ...]
    controls: tuple[Control, ...] = ()
    models: tuple[ModelCost, ...] = ()
    peaks: tuple[Peak, ...] = ()
    profiles: tuple[Profile, ...] = ()
    failures: tuple[Failure, ...] = ()
    warnings: tuple[str, ...] = ()
    environment: Environment
    machine: Machine
    activity: Activity
