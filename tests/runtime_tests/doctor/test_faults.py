"""Every fault is found, with its place and its severity, and nothing else is; files without faults have no findings."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from qil_deploy.runtime_tests.doctor import diagnose

from .faults import FAULTS, FINE

IS_X86 = platform.machine().lower() in ("x86_64", "amd64")


@pytest.mark.parametrize("name", [*FINE, *FAULTS])
def test_the_findings_are_these_and_no_others(tmp_path: Path, name: str) -> None:
    case = {**FINE, **FAULTS}[name]
    if case.x86 and not IS_X86:
        pytest.skip("other machines have kernels for these")
    path = tmp_path / "case.onnx"
    path.write_bytes(case.build().SerializeToString())
    diagnosis = diagnose(path)
    found = sorted((finding.kind, finding.severity, finding.where) for finding in diagnosis.findings)
    expected = sorted(case.expected)
    assert [each[:2] for each in found] == [each[:2] for each in expected], found
    for (kind, _, places), (_, _, patterns) in zip(found, expected, strict=True):
        assert len(places) == len(patterns), (kind, places)
        for place, pattern in zip(places, patterns, strict=True):
            assert matches(place, pattern), (kind, place)
    for kind, part in case.remedies.items():
        assert [finding for finding in diagnosis.findings if finding.kind == kind and part in finding.remedy], kind
    assert diagnosis.healthy is (name in FINE)


def matches(place: str, pattern: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), place) is not None


def test_every_finding_that_is_documented_is_tried() -> None:
    page = (Path(__file__).parents[3] / "docs" / "doctor.md").read_text()
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("*.py"))
    documented = re.findall(r"^\| `([a-z0-9-]+)` \|", page, re.MULTILINE)
    assert len(documented) > 20
    assert [kind for kind in documented if f'"{kind}"' not in tests] == []
