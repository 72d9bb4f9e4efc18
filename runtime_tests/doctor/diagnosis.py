"""The findings of `doctor` as written to JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qil_deploy.runtime_tests.environment import Environment
from qil_deploy.runtime_tests.reports import ModelFile

from .findings import Finding


@dataclass(frozen=True, kw_only=True)
class KernelCount:
    """Number of nodes of one operator that ONNX Runtime executes, including those in branches and loops."""

    operator: str
    nodes: int


@dataclass(frozen=True, kw_only=True)
class ComparedOutput:
    """Difference of one result between a run with ONNX Runtime's optimizer and one without.

    Attributes:
        output: its name.
        elements: how many numbers it has.
        differing: how many of them differ.
        largest: the largest difference of finite numbers.
        rounding: whether rounding explains all of it.
    """

    output: str
    elements: int
    differing: int
    largest: float
    rounding: bool


@dataclass(frozen=True, kw_only=True)
class FirstDiagnosis:
    """A diagnosis as it was written before results were compared, with missing knowledge reported as notes.

    Attributes:
        schema: name and version of this format, `SCHEMA`.
        model: the file.
        environment: where ONNX Runtime optimized it.
        loads: whether ONNX Runtime loads it; False if it did not get the file.
        quantized: whether anything in it is quantized, even simulated.
        kernels: what ONNX Runtime executes; empty if the file does not load.
        findings: what holds it back, and what is not known.
    """

    SCHEMA: ClassVar[str] = "qil_deploy.doctor/1"

    schema: str
    model: ModelFile
    environment: Environment
    loads: bool
    quantized: bool
    kernels: tuple[KernelCount, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class Diagnosis(FirstDiagnosis):
    """All findings of `diagnose`, the worst first.

    Attributes:
        compared: results with and without the optimizer, for one input; empty if they could not be compared. All others
            are those of the first version.
        with_kernels: results with a library of kernels and the optimizer, and without both; empty without a library.
        kernel_choices: which sets of kernels the library chose, "OPERATOR: set (why)".
    """

    SCHEMA: ClassVar[str] = "qil_deploy.doctor/2"

    compared: tuple[ComparedOutput, ...]
    with_kernels: tuple[ComparedOutput, ...] = ()
    kernel_choices: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether there are at most notes."""
        return all(finding.severity == "note" for finding in self.findings)
