"""Measured figures as plain data, from any command. None means not measured."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import PureWindowsPath
from typing import Final, TypeVar

from qil_deploy.runtime_tests.reports import ModelFile

NATIVE: Final = "native"
"""The target that this machine is."""
Row = TypeVar("Row")
FILES: Final = "files"
"""What a remark about files that were left out is about."""
LATENCY: Final = "latency"
"""What a remark about times is about."""


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A report that contains figures."""

    path: str
    schema: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class CertificateLine:
    """One line of the certificate in a model's metadata: the worst possible value, and its bound."""

    name: str
    worst: float
    bound: float
    where: str

    @property
    def holds(self) -> bool:
        """Whether the worst value is within the bound."""
        return self.worst <= self.bound


@dataclass(frozen=True, kw_only=True)
class ModelContent:
    """Description of a model in its own file.

    Attributes:
        format, input: "qlinear", "qdq" or "float"; "uint8" or "float".
        weights: how they are stored: "packed", "int8" or "float32".
        opset: operator set.
        weight_bits: of each layer, in order; none for float models.
        certificate: its lines; none for float models.
    """

    format: str
    input: str
    weights: str
    opset: int
    weight_bits: tuple[int, ...]
    certificate: tuple[CertificateLine, ...]


@dataclass(frozen=True, kw_only=True)
class Model:
    """One file that was measured.

    Attributes:
        sha256: digest; distinguishes models.
        name, path: without and with folders, as in reports.
        bytes: its size.
        content: what the file says, if it is still there.
        unread: why `content` is None, a sentence.
    """

    sha256: str
    name: str
    path: str
    bytes: int | None
    content: ModelContent | None
    unread: str | None

    @classmethod
    def of(cls, file: ModelFile) -> Model:
        """Return a model from its path, size and digest in a report."""
        return cls.measured(file.path, file.sha256, file.bytes)

    @classmethod
    def measured(cls, path: str, sha256: str, size: int | None) -> Model:
        """Return a model from its path in a report, with separators of Windows or others."""
        name = PureWindowsPath(path).name or path
        return cls(sha256=sha256, name=name, path=path, bytes=size, content=None, unread=None)


@dataclass(frozen=True, kw_only=True)
class Exactness:
    """One comparison with the integer reference.

    Attributes:
        model: digest.
        target: "native", or what ran it instead.
        backend: "ONNX Runtime", "frozen PyTorch", ...
        level: graph-optimization level; None for backends without one.
        what: "codes" (every tensor) or "logits".
        reference: what it was compared with.
        images: how many.
        elements, differing: how many were compared, and how many are not equal.
        changed_classes: how many images get another class; None if that was not counted.
        must_equal: whether a difference is a fault.
        first: the first difference, a sentence; None if there is none or it was not looked for.
    """

    model: str
    target: str
    backend: str
    level: str | None
    what: str
    reference: str
    images: int
    elements: int
    differing: int
    changed_classes: int | None
    must_equal: bool
    first: str | None


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Share of the images whose class is right, from 0 to 1."""

    model: str
    backend: str
    images: int
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Duration of one run, in milliseconds.

    Attributes:
        model: digest.
        by: how it was measured: "bench", or "while verifying" for what targets, devices and phones measure meanwhile,
            with the name of the report if a run has two of the same model and setting.
        target, threads, batch, caches: the setting; caches are "warm" or "cold".
        runs: how many were measured.
        median, p95, least, spread: of them; spread is the 75th minus the 25th percentile.
        median_low, median_high: where the median lies (95 %), from the samples.
        ratio, ratio_low, ratio_high: to the first model of the same setting, and where it lies (95 %).
        first: digest of that model.
        gmacs, peak_share: 1e9 multiplications per second, and their share of the peak measured there.
    """

    model: str
    by: str
    target: str
    threads: int
    batch: int
    caches: str
    runs: int
    median: float
    p95: float
    least: float | None = None
    spread: float | None = None
    median_low: float | None = None
    median_high: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    first: str | None = None
    gmacs: float | None = None
    peak_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Control:
    """The first model of a setting measured twice: its ratio to itself, with its interval (95 %)."""

    model: str
    by: str
    target: str
    threads: int
    batch: int
    caches: str
    ratio: float
    ratio_low: float | None
    ratio_high: float | None


@dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """All nodes of one operator in a profile: number, microseconds per run, and share of the run's time."""

    model: str
    threads: int
    operator: str
    nodes: int
    microseconds: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Costs of a model besides its latency: time to load and memory, bytes above those of a process without it."""

    model: str
    macs: int | None
    load_ms: float | None
    first_run_ms: float | None
    peak_bytes: int | None
    runtime_bytes: int | None

    @property
    def memory(self) -> int | None:
        """Peak memory of a process with the model, above that of one that loads no model, in bytes."""
        return None if self.peak_bytes is None or self.runtime_bytes is None else self.peak_bytes - self.runtime_bytes


@dataclass(frozen=True, kw_only=True)
class InstructionCount:
    """Instructions of one inference on an emulated processor.

    Attributes:
        model: digest.
        target, batch: the setting.
        instructions: median of the counted runs.
        spread: largest count minus smallest, as a share of the median.
        ratio: to the first model of the same report.
        first: digest of that model.
    """

    model: str
    target: str
    batch: int
    instructions: int
    spread: float
    ratio: float
    first: str


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One line about a machine."""

    name: str
    value: str


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Place and subject of a measurement: target and kind of report."""

    target: str
    measured: tuple[str, ...]
    facts: tuple[Fact, ...]


@dataclass(frozen=True, kw_only=True)
class NotRun:
    """A requested measurement that is missing or incomplete.

    Attributes:
        model: digest, or None if only its path is known.
        name: of the model, as in the report.
        target: where.
        failed: whether it failed; else it was left out on purpose.
        reason: a sentence.
    """

    model: str | None
    name: str
    target: str
    failed: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A finding of `doctor`."""

    model: str
    severity: str
    what: str
    count: int
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Remark:
    """Reservation about figures.

    Attributes:
        text: a sentence or more.
        grave: whether a difference may have gone unseen.
        about: "latency", "files" (what was left out), or "" for all else.
    """

    text: str
    grave: bool
    about: str = ""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Figures of one run: of one date, one commit, one machine."""

    name: str
    sources: tuple[SourceFile, ...] = ()
    models: tuple[Model, ...] = ()
    exactness: tuple[Exactness, ...] = ()
    accuracies: tuple[Accuracy, ...] = ()
    latencies: tuple[Latency, ...] = ()
    controls: tuple[Control, ...] = ()
    profiles: tuple[OperatorTime, ...] = ()
    costs: tuple[Cost, ...] = ()
    instructions: tuple[InstructionCount, ...] = ()
    environments: tuple[Environment, ...] = ()
    not_run: tuple[NotRun, ...] = ()
    diagnosed: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    remarks: tuple[Remark, ...] = ()


def merge(name: str, *parts: Run) -> Run:
    """Concatenate the figures of some runs, in order."""
    names = [field.name for field in fields(Run) if field.name != "name"]
    return Run(name=name, **{each: tuple(row for part in parts for row in getattr(part, each)) for each in names})


def copy_fields(row_class: type[Row], *sources: object, **given: object) -> Row:
    """Make a row from fields of the same names in reports, each from the first report that has it, and from others."""
    names = [field.name for field in fields(row_class)]  # type: ignore[arg-type] # a dataclass
    found = {name: getattr(each, name) for each in reversed(sources) for name in names if hasattr(each, name)}
    return row_class(**(found | given))
