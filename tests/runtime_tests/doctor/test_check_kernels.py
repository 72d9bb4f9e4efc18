"""Findings of `doctor --kernels` about the library of kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qil_deploy.onnx_io import Node, OnnxFile
from qil_deploy.runtime_tests.doctor.check_kernels import kernel_findings
from qil_deploy.runtime_tests.doctor.compare_levels import difference
from qil_deploy.runtime_tests.doctor.findings import Finding
from qil_deploy.runtime_tests.doctor.try_runtime import Failure, RuntimeTrial

USED = {"TernaryConv": "avx2 (the first that is faster)"}
LOGITS = np.arange(40, dtype=np.float32)


def findings_of(
    trial: RuntimeTrial, choices: dict[str, str] = USED, *, operators: tuple[str, ...] = ("TernaryConv",)
) -> list[Finding]:
    """Return the findings for a file of these operators."""
    nodes = tuple(Node(name, "qil.deploy", f"node {name}", (), ()) for name in operators)
    file = OnnxFile(
        path=Path("model.onnx"),
        nodes=nodes,
        initializers={},
        stored_types={},
        inputs=(),
        outputs=(),
        metadata={},
        opsets={},
        ir_version=10,
    )
    return list(kernel_findings(file, choices, trial))


def test_equal_results_are_no_finding() -> None:
    assert findings_of(RuntimeTrial(with_kernels=(difference("logits", LOGITS, LOGITS),))) == []


def test_other_results_are_wrong() -> None:
    trial = RuntimeTrial(with_kernels=(difference("logits", LOGITS, LOGITS[::-1]),))
    (finding,) = findings_of(trial)
    assert (finding.kind, finding.severity) == ("kernels-change-result", "wrong")
    assert finding.where == ("output 'logits': 40 of 40 differ, by up to 39",)
    trial.random = True  # as it would without the library
    assert findings_of(trial) == []


@pytest.mark.parametrize(("how", "severity"), [("failed", "blocks"), ("crashed", "blocks"), ("hung", "unknown")])
def test_a_run_that_fails_with_the_library_alone_is_a_finding(how: str, severity: str) -> None:
    failures = {"run_kernels": Failure(how=how, reason="qil.deploy: w is odd")}
    (finding,) = findings_of(RuntimeTrial(failures=failures))
    assert (finding.kind, finding.severity, finding.where) == ("kernels-fail", severity, ("qil.deploy: w is odd",))
    both = failures | {"run": Failure(how="failed", reason="it fails without the library, too")}
    assert findings_of(RuntimeTrial(failures=both)) == []


def test_why_no_kernel_is_used_is_a_note() -> None:
    (finding,) = findings_of(RuntimeTrial(), {"TernaryConv": "none (no set is faster)"})
    assert (finding.kind, finding.severity) == ("kernels-unused", "note")
    assert "used none of its kernels for TernaryConv, chosen: none (no set is faster)" in finding.where[0]
    (finding,) = findings_of(RuntimeTrial(), operators=())
    assert "model.onnx has no convolutions for kernels" in finding.where[0]
