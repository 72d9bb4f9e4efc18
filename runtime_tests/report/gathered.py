"""The figures of one report, of whichever kind, and how those of several come together."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import PureWindowsPath

from qil_deploy.runtime_tests.reports import ModelFile

from .figures import (
    Accuracy,
    Control,
    Cost,
    Environment,
    Exactness,
    Finding,
    InstructionCount,
    Latency,
    NotRun,
    OperatorTime,
    Remark,
)

NATIVE = "native"
"""The target that this machine is."""


@dataclass(frozen=True, kw_only=True)
class MeasuredFile:
    """A model as a report names it."""

    path: str
    sha256: str
    bytes: int | None

    @classmethod
    def of(cls, model: ModelFile) -> MeasuredFile:
        """Return a file of which a report has path, size and digest."""
        return cls(path=model.path, sha256=model.sha256, bytes=model.bytes)

    @property
    def name(self) -> str:
        """Its name without folders, be they separated as on Windows or not."""
        return PureWindowsPath(self.path).name or self.path


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one report holds, of the fields of `figures.Run`."""

    files: tuple[MeasuredFile, ...]
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


def merge(*parts: Figures) -> Figures:
    """Put figures together, in order."""
    return Figures(
        **{field.name: tuple(row for part in parts for row in getattr(part, field.name)) for field in fields(Figures)}
    )
