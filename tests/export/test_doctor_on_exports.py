"""`doctor` on files of this project, in every form: no findings but unavoidable ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from torch import nn

from qil_deploy.runtime_tests.doctor import Diagnosis, diagnose

from .test_exactness import VARIANTS
from .test_float_parts import FORMS, case_of

if TYPE_CHECKING:
    from tests.export.conftest import Exports

ZOO = Path(__file__).parents[2] / "zoo" / "fashion_mnist"
PLAIN = {"space_to_depth": False, "channels_last": False, "matmul_nbits": False, "simplify": False}


def kinds(diagnosis: Diagnosis) -> list[tuple[str, str, int]]:
    return [(finding.kind, finding.severity, finding.count) for finding in diagnosis.findings]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_nothing_holds_the_zoo_back(bits: int) -> None:
    diagnosis = diagnose(ZOO / f"w{bits}a{bits}.onnx")
    assert diagnosis.findings == ()
    assert [(output.output, output.differing) for output in diagnosis.compared] == [("logits", 0)]


def test_the_float_model_of_the_zoo_is_a_note() -> None:
    assert kinds(diagnose(ZOO / "float.onnx")) == [("not-quantized", "note", 1)]


@pytest.mark.parametrize(
    "options",
    [*VARIANTS, {"batch": 2}, {"opset": 21, "weights": "int8"}, PLAIN],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_nothing_holds_an_export_back(exports: Exports, tmp_path: Path, options: dict[str, Any]) -> None:
    diagnosis = diagnose(exports.resnet().export(tmp_path / "model.onnx", **options))
    assert diagnosis.findings == ()
    assert all(output.rounding for output in diagnosis.compared)
    if options.get("format") != "qdq":  # which dequantizes its logits
        assert [(output.output, output.differing) for output in diagnosis.compared] == [("logits", 0)]


@pytest.mark.parametrize("form", FORMS)
def test_float_parts_of_an_export_are_named(exports: Exports, tmp_path: Path, form: str) -> None:
    diagnosis = diagnose(case_of(exports, nn.Mish()).export(tmp_path / "model.onnx", **FORMS[form]))
    assert kinds(diagnosis) == [("float-island", "slow", 2), ("qdq-unfused", "slow", 1)]
    (unfused,) = [finding for finding in diagnosis.findings if finding.kind == "qdq-unfused"]
    assert len(unfused.where) == 1
    assert ": its input from Tanh '" in unfused.where[0]
