"""The report of one run on a target, a Python (`device_runner`) or a browser.

Devices carry this module (`device_program`): it needs Python alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class TensorResult:
    """One tensor of all images.

    Attributes:
        tensor: its name in the graph.
        dtype, shape: as found, image axis first.
        sha256: digest of its elements in C order, little-endian, with 0 in place of -0.
        elements: how many the golden tensor has, if there is one; else how many it has.
        differing: how many of them are not as in the golden vectors, all if shape or type differ; None if there were
            none.
        largest_step: largest difference, in codes (or logits), if it is a number.
        index: position in the golden tensor of the first element that differs, image first; None if none does.
    """

    tensor: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str
    elements: int
    differing: int | None
    largest_step: float | None
    index: tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True)
class LevelResult:
    """One graph-optimization level.

    Attributes:
        level: its name.
        predictions: class of each image, -1 if a logit is NaN; none if the first output is no row of logits.
        logits: the first output, of the file as it is.
        tensors: every golden tensor in order of execution, from a session that has them all as outputs; none if the
            golden vectors hold only the outputs.
        others: the outputs after the first, of the file as it is.
    """

    level: str
    predictions: tuple[int, ...]
    logits: TensorResult
    tensors: tuple[TensorResult, ...]
    others: tuple[TensorResult, ...] = ()

    @property
    def outputs(self) -> tuple[TensorResult, ...]:
        """All outputs of the unmodified file."""
        return (self.logits, *self.others)

    @property
    def differing(self) -> int:
        """Number of codes and logits that differ."""
        return sum(tensor.differing or 0 for tensor in (*self.outputs, *self.tensors))

    @property
    def first_difference(self) -> TensorResult | None:
        """The first tensor in order of execution that differs."""
        return next((tensor for tensor in (*self.tensors, *self.outputs) if tensor.differing), None)


@dataclass(frozen=True, kw_only=True)
class DeviceLatency:
    """Time of single runs, in milliseconds, over `runs` runs of `images` images each."""

    runs: int
    images: int
    median_ms: float
    p95_ms: float


@dataclass(frozen=True, kw_only=True)
class DeviceEnvironment:
    """Software and processor of a target.

    Attributes:
        onnxruntime: version.
        numpy, python: versions; None in a browser.
        browser: how a browser describes itself (its user agent); None elsewhere.
        machine: instruction set.
        cpu: the processor's name; under an emulator, the emulated one. Browsers do not tell it.
        cpus: how many logical processors it may use.
        features: instruction set extensions that numpy or the browser finds.
    """

    onnxruntime: str
    numpy: str | None
    python: str | None
    browser: str | None
    machine: str
    cpu: str
    cpus: int
    features: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DeviceReport:
    """One run of a model on a target.

    Attributes:
        schema: `SCHEMA`.
        model, sha256: file name and digest of the model.
        images: how many.
        compared: whether there was anything to compare with.
        threads, batch: how it was run.
        levels: one entry per optimization level.
        latency: None if it was not measured.
        environment: versions and processor.
        kernels: what the library of kernels that was registered chose there, "OPERATOR: set (why)"; none without one.
    """

    SCHEMA: ClassVar[str] = "qil_deploy.device/2"

    schema: str
    model: str
    sha256: str
    images: int
    compared: bool
    threads: int
    batch: int
    levels: tuple[LevelResult, ...]
    latency: DeviceLatency | None
    environment: DeviceEnvironment
    kernels: tuple[str, ...] = ()

    @property
    def differing(self) -> int:
        """Number of codes and logits that differ, all levels together."""
        return sum(level.differing for level in self.levels)

    @property
    def compared_elements(self) -> int:
        """Number of codes and logits that were compared, all levels together."""
        return sum(tensor.elements for level in self.levels for tensor in (*level.outputs, *level.tensors))


@dataclass(frozen=True, kw_only=True)
class GuestReport:
    """Environment of `instructions/guest.py`, written after all runs.

    Attributes:
        schema: `SCHEMA`.
        environment: versions and processor, as emulated.
    """

    SCHEMA: ClassVar[str] = "qil_deploy.guest/1"

    schema: str
    environment: DeviceEnvironment
