"""A diagnosis as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.padding import Padding
from rich.text import Text

from qil_deploy.terminal import line

from .diagnosis import ComparedOutput, Diagnosis
from .findings import SEVERITIES, Finding

_STYLES = {
    "blocks": "bold red",
    "wrong": "bold red",
    "slow": "yellow",
    "inexact": "magenta",
    "unknown": "bold",
    "note": "cyan",
}


def diagnosis_lines(diagnosis: Diagnosis) -> Iterator[Text | Padding]:
    """Yield the lines to print: the file, its findings, and the verdict."""
    model, environment = diagnosis.model, diagnosis.environment
    versions = f"ONNX Runtime {environment.onnxruntime}, {environment.machine}"
    yield line((f"{model.path}: {model.bytes:,} bytes; {versions}", "bold"))
    if diagnosis.kernels:
        yield line("Executes " + ", ".join(f"{count.nodes} {count.operator}" for count in diagnosis.kernels))
    if diagnosis.compared:
        yield line(f"With and without optimizer: {', '.join(map(_compared, diagnosis.compared))}")
    if diagnosis.kernel_choices:
        yield line(f"Kernel library: {'; '.join(diagnosis.kernel_choices)}")
    if diagnosis.with_kernels:
        yield line(f"With kernels, and without them and optimizer: {', '.join(map(_compared, diagnosis.with_kernels))}")
    for finding in diagnosis.findings:
        yield Text()
        yield line((finding.severity, _STYLES[finding.severity]), f" {finding.kind}: {finding.what}")
        for detail in _details(finding):
            yield Padding(detail, (0, 0, 0, 2))
    yield Text()
    yield line((_verdict(diagnosis), "bold"))


def _compared(output: ComparedOutput) -> str:
    if not output.differing:
        return f"'{output.output}' equal"
    how = "rounding" if output.rounding else "more than rounding"
    return f"'{output.output}' differs in {output.differing:,} of {output.elements:,}, by {output.largest:.3g} ({how})"


def _details(finding: Finding) -> Iterator[Text]:
    for place in finding.where:
        yield line(f"- {place}")
    if finding.count > len(finding.where):
        yield line(f"- and {finding.count - len(finding.where)} more")
    yield line(("Why: ", "bold"), finding.why)
    yield line(("Do: ", "bold"), finding.remedy)


def _verdict(diagnosis: Diagnosis) -> str:
    if diagnosis.healthy:
        return "Nothing holds this model back." if diagnosis.quantized else "This model is not quantized."
    if all(finding.severity in ("unknown", "note") for finding in diagnosis.findings):
        return "What holds this model back is not known: not all of it could be looked into."
    counts = {name: sum(finding.severity == name for finding in diagnosis.findings) for name in SEVERITIES}
    listed = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"Findings: {listed}."
