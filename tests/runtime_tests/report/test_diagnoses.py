"""Findings of `doctor` on the page of a report: from present files, and from older ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.command_line import Outcome

FINDING = {
    "kind": "s8s8",
    "severity": "slow",
    "what": "activations are int8 (S8S8)",
    "count": 1,
    "where": ["Conv 'sum'"],
    "why": "slow kernels",
    "remedy": "Quantize activations to uint8.",
}
# As the first version wrote it.
FIRST: dict[str, Any] = {
    "schema": "qil_deploy.doctor/1",
    "model": {"path": "net.onnx", "bytes": 1000, "sha256": "a" * 64},
    "environment": {
        "onnxruntime": "1.32.0",
        "numpy": "2.4.6",
        "python": "3.11.7",
        "machine": "x86_64",
        "cpu": "a processor",
        "cpus": 2,
    },
    "loads": True,
    "quantized": True,
    "kernels": [{"operator": "QLinearConv", "nodes": 3}],
    "findings": [FINDING],
}
UNKNOWN = FINDING | {"kind": "external-data", "severity": "unknown", "what": "data were not read"}
SECOND = FIRST | {
    "schema": "qil_deploy.doctor/2",
    "findings": [FINDING, UNKNOWN],
    "compared": [{"output": "y", "elements": 10, "differing": 1, "largest": 0.5, "rounding": True}],
}


@pytest.mark.parametrize("content", [FIRST, SECOND], ids=["first version", "second version"])
def test_findings_of_every_version_are_shown(
    tmp_path: Path, content: dict[str, Any], call: Callable[..., Outcome]
) -> None:
    source, page = tmp_path / "doctor.json", tmp_path / "report.html"
    source.write_text(json.dumps(content))
    outcome = call("report", source, "-o", page)
    assert outcome.code == 0, outcome
    text = page.read_text(encoding="utf-8")
    for finding in content["findings"]:
        assert finding["what"] in text
        assert finding["severity"] in text


@pytest.mark.parametrize(("schema", "missing"), [("qil_deploy.doctor/2", "compared"), ("qil_deploy.doctor/1", "loads")])
def test_damaged_diagnoses_are_refused(tmp_path: Path, schema: str, missing: str, call: Callable[..., Outcome]) -> None:
    source = tmp_path / "doctor.json"
    source.write_text(json.dumps({key: value for key, value in SECOND.items() if key != missing} | {"schema": schema}))
    assert call("report", source, "-o", tmp_path / "report.html").code == 2
