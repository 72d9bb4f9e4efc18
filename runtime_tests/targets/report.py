"""The report of `verify --target`: every target's report, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qil_deploy.runtime_tests.device_report import (
    DeviceEnvironment,
    DeviceLatency,
    DeviceReport,
    LevelResult,
    TensorResult,
)
from qil_deploy.runtime_tests.reports import ModelFile

__all__ = [
    "DeviceEnvironment",
    "DeviceLatency",
    "DeviceReport",
    "LevelResult",
    "TargetResult",
    "TargetsReport",
    "TensorResult",
]


@dataclass(frozen=True, kw_only=True)
class TargetResult:
    """One target.

    Attributes:
        target: its name.
        skipped: why it was not run, or None.
        failed: what went wrong on the way, or None.
        codes: every code of a few images, at every level that must be exact.
        logits: logits of more images at the default level, if they were asked for.
    """

    target: str
    skipped: str | None
    failed: str | None
    codes: DeviceReport | None
    logits: DeviceReport | None

    @property
    def reports(self) -> tuple[DeviceReport, ...]:
        """The available reports."""
        return tuple(report for report in (self.codes, self.logits) if report is not None)


@dataclass(frozen=True, kw_only=True)
class TargetsReport:
    """Outcome of `verify --target`.

    Attributes:
        schema: `SCHEMA`.
        model: the file.
        exact: whether every target that was started came to its end and nothing differs; None if none was.
        targets: one entry per target.
    """

    SCHEMA: ClassVar[str] = "qil_deploy.targets/2"

    schema: str
    model: ModelFile
    exact: bool | None
    targets: tuple[TargetResult, ...]
