"""Read a file, let ONNX Runtime optimize it, and collect the findings."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import onnxruntime

from qil_deploy.errors import ModelFileError
from qil_deploy.executed_kernels import write_optimized_model
from qil_deploy.onnx_file import OnnxFile, read_model
from qil_deploy.onnx_schema import with_outputs
from qil_deploy.runtime_tests.environment import Environment, describe_environment
from qil_deploy.runtime_tests.reports import ModelFile
from qil_deploy.runtime_tests.sessions import create_session

from .arithmetic import arithmetic_findings
from .executed import executed_findings
from .findings import SEVERITIES, Finding, found
from .network import Network, link
from .scales import scale_findings
from .written import quantizers, written_findings

_LONGEST_REASON = 400
# ONNX Runtime's names of types that numpy calls otherwise.
_TYPE_NAMES = {"tensor(float)": "float32", "tensor(double)": "float64"}


@dataclass(frozen=True, kw_only=True)
class KernelCount:
    """How many nodes of one operator ONNX Runtime executes."""

    operator: str
    nodes: int


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Everything that `diagnose` found, the worst first.

    Attributes:
        schema: name and version of this format, `SCHEMA`.
        model: the file.
        environment: where ONNX Runtime optimized it.
        loads: whether ONNX Runtime loads it.
        quantized: whether anything in it is quantized.
        kernels: what ONNX Runtime executes; empty if the file does not load.
        findings: what holds it back.
    """

    SCHEMA: ClassVar[str] = "qil_deploy.doctor/1"

    schema: str
    model: ModelFile
    environment: Environment
    loads: bool
    quantized: bool
    kernels: tuple[KernelCount, ...]
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether there are notes at most."""
        return all(finding.severity == "note" for finding in self.findings)


def diagnose(path: Path) -> Diagnosis:
    """Find what holds the ONNX file at `path` back in ONNX Runtime on CPUs.

    Raises:
        ModelFileError: there is no such file, or it is damaged, truncated or no ONNX file.
    """
    left_out: list[str] = []
    written = link(read_model(path, left_out=left_out))
    executed, failure = _executed(path, left_out)
    quantized = bool(quantizers(written))
    findings = [
        *_unloadable(path, failure),
        *written_findings(written, loads=executed is not None),
        *(executed_findings(executed) if quantized and executed is not None else ()),
        *(arithmetic_findings(executed) if executed is not None else ()),
        *scale_findings(written),
        *_float_model(quantized=quantized),
        *_not_looked_into(left_out),
    ]
    counts = Counter(node.op_type for node in executed.file.nodes) if executed is not None else Counter[str]()
    return Diagnosis(
        schema=Diagnosis.SCHEMA,
        model=ModelFile.of(path),
        environment=describe_environment(),
        loads=executed is not None,
        quantized=quantized,
        kernels=tuple(KernelCount(operator=operator, nodes=nodes) for operator, nodes in counts.most_common()),
        findings=tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))),
    )


def _executed(path: Path, left_out: list[str]) -> tuple[Network | None, str]:
    """Return the graph that ONNX Runtime executes, with types and shapes, or why there is none."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        try:
            write_optimized_model(path, optimized)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class below Exception
            return None, " ".join(str(error).split())[:_LONGEST_REASON]
        file = read_model(optimized, left_out=[])
        try:
            return _typed(file), ""
        except ModelFileError as error:
            left_out.append(f"the graph that is executed, whose types are not known ({error})")
            return link(file), ""


def _typed(file: OnnxFile) -> Network:
    """Link a graph whose tensors get the types and shapes that ONNX Runtime infers."""
    present = {info.name for info in file.outputs}
    wanted = [name for node in file.nodes for name in node.outputs if name and name not in present]
    content = with_outputs(file.path.read_bytes(), wanted)
    tensors = create_session(file.path, level="disabled", content=content).get_outputs()
    types = {tensor.name: _type_name(tensor.type) for tensor in tensors}
    shapes = {tensor.name: tuple(tensor.shape) for tensor in tensors}
    types.update({info.name: info.dtype for info in file.inputs})
    shapes.update({info.name: info.shape for info in file.inputs if info.shape is not None})
    return link(file, types, shapes)


def _type_name(name: str) -> str:
    return _TYPE_NAMES.get(name, name.removeprefix("tensor(").removesuffix(")"))


def _unloadable(path: Path, failure: str) -> list[Finding]:
    if not failure:
        return []
    try:
        create_session(path, level="disabled")
    except ModelFileError:
        remedy = "Correct what the message names: a missing file, an unknown operator or domain, or an invalid graph."
    else:
        remedy = (
            "It loads with graph optimizations disabled, so the file is valid and the optimizer stumbles: change what "
            "the findings below name."
        )
    return found(
        "does-not-load",
        "blocks",
        [failure],
        what=f"ONNX Runtime {onnxruntime.__version__} does not load the file",
        why="Nothing can be said about what would be executed.",
        remedy=remedy,
    )


def _float_model(*, quantized: bool) -> list[Finding]:
    return found(
        "not-quantized",
        "note",
        [] if quantized else ["the whole graph"],
        what="nothing in the file is quantized",
        why="ResNet-18 takes 34.5 ms in float32 and 10 ms in int8.",
        remedy="Quantize it (docs/training.md), or take it as the float baseline that it is.",
    )


def _not_looked_into(left_out: list[str]) -> list[Finding]:
    return found(
        "not-looked-into",
        "note",
        left_out,
        what="parts of the file were not looked into",
        why="Findings may be missing there.",
        remedy="Store weights inside the file and inline subgraphs and functions, for a full diagnosis.",
    )
