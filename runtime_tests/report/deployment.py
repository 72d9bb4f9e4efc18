"""Content of the page as plain data: the figures of all runs, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .figures import Remark, Run


@dataclass(frozen=True, kw_only=True)
class ModelVerdict:
    """Verdict on one model in one run.

    Attributes:
        run, model, name: which.
        status: "equal", "differs", "incomplete" (nothing differs, but something failed or could not be read), or
            "not compared".
        compared, differing: elements that had to be equal, and how many of them are not.
        targets: where they were compared.
        sentences: the same in words.
    """

    run: str
    model: str
    name: str
    status: str
    compared: int
    differing: int
    targets: tuple[str, ...]
    sentences: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The worst status of all compared models, in words, and each model's."""

    status: str
    sentence: str
    models: tuple[ModelVerdict, ...]


@dataclass(frozen=True, kw_only=True)
class Change:
    """One figure of a run beside that of the first run.

    Attributes:
        run, first: their names.
        name: of the model.
        same_file: whether it is the same file; else models were matched by name.
        figure: "accuracy", "differing", "latency", "instructions" or "size".
        setting: of the figure, in words.
        before, after: values: shares, counts, milliseconds, instructions, bytes.
        ratio: after divided by before; None if that says nothing.
        overlap: whether the intervals of both overlap; None if there are none.
        remark: what makes the comparison doubtful, or None.
    """

    run: str
    first: str
    name: str
    same_file: bool
    figure: str
    setting: str
    before: float
    after: float
    ratio: float | None
    overlap: bool | None
    remark: str | None


@dataclass(frozen=True, kw_only=True)
class DeploymentReport:
    """Outcome of `report`.

    Attributes:
        schema: `SCHEMA`.
        written: when, in UTC.
        verdict: the conclusion.
        runs: the figures.
        changes: every other run against the first.
        remarks: about the runs as a whole.
    """

    SCHEMA: ClassVar[str] = "qil_deploy.report/1"

    schema: str
    written: str
    verdict: Verdict
    runs: tuple[Run, ...]
    changes: tuple[Change, ...]
    remarks: tuple[Remark, ...]
