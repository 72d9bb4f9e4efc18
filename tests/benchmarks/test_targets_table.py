"""The table of targets: rows kept from earlier runs, and the text of its cells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import targets_table
from qil_deploy.config import QuantConfig
from qil_deploy.datasets import load_images
from qil_deploy.export import export_onnx
from qil_deploy.network.calibration import calibrate
from qil_deploy.network.preparation import prepare
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.reports import write_report
from qil_deploy.runtime_tests.targets import TargetResult, find_target
from qil_deploy.terminal.console import Console
from qil_deploy.training.models.build import build_model
from targets_table import Subject, code_rows, found_on, logit_rows, merged, results_so_far

PIXELS = Preprocessing.from_statistics((1, 8, 8), mean=0.3, std=0.3)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A small network on digits."""
    path = tmp_path_factory.mktemp("subject") / "small.onnx"
    images = load_images("digits").images[:8]
    torch.manual_seed(0)
    network = build_model("resnet8", {"in_channels": 1, "num_classes": 10, "width": 4}).eval()
    x = torch.from_numpy(PIXELS.normalize(images))
    prepared = prepare(network, QuantConfig(weight_bits=4, activation_bits=4), x, input_grid=PIXELS)
    calibrate(prepared, [x])
    names = tuple(map(str, range(10)))
    export_onnx(prepared.eval(), path, preprocessing=PIXELS, class_names=names, data="digits")
    return Subject(name="small", path=path, write=None, images=2, logits=8, emulated_logits=0)


@pytest.fixture(scope="module")
def found(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> TargetResult:
    folder = tmp_path_factory.mktemp("vectors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets_table, "DATA", "digits")
        return found_on(subject, find_target("native"), folder, Console())["native"]


def test_every_code_and_the_logits_of_more_images_are_compared(subject: Subject, found: TargetResult) -> None:
    reports = {"small": merged(subject.path, {"native": found})}
    assert found.codes is not None
    assert found.logits is not None
    (row,) = code_rows(reports).cells
    assert row == ["small", f"0 of {found.codes.compared_elements:,}"]
    # Four levels, and in each more tensors than the logits of two images.
    assert found.codes.compared_elements > 4 * 2 * 10
    assert logit_rows(reports).cells == [["small", "0 of 80 (8 images)"]]


def test_a_difference_is_counted_and_makes_the_report_inexact(subject: Subject, found: TargetResult) -> None:
    assert found.logits is not None
    level = found.logits.levels[0]
    wrong = replace(found.logits, levels=(replace(level, logits=replace(level.logits, differing=3)),))
    report = merged(subject.path, {"native": replace(found, logits=wrong)})
    assert report.exact is False
    assert logit_rows({"small": report}).cells == [["small", "3 of 80 (8 images)"]]


def test_targets_that_did_not_run_leave_a_gap(subject: Subject, found: TargetResult) -> None:
    reports = {
        "one": merged(subject.path, {"native": found}),
        "two": merged(subject.path, {"haswell": replace(found, target="haswell", logits=None)}),
    }
    assert code_rows(reports).headings == ("model", "native", "haswell")
    assert next(row[2] for row in code_rows(reports).cells) == ""
    assert [row[0] for row in logit_rows(reports).cells] == ["one"]


def test_what_was_found_about_another_file_is_forgotten(subject: Subject, found: TargetResult, tmp_path: Path) -> None:
    report, other = tmp_path / "small.json", tmp_path / "other.onnx"
    write_report(report, merged(subject.path, {"native": found}))
    assert results_so_far(report, subject.path) == {"native": found}
    other.write_bytes(subject.path.read_bytes() + b"\n\x00")
    assert results_so_far(report, other) == {}
    assert results_so_far(report, tmp_path / "missing.onnx") == {}


def test_images_are_brought_to_the_shape_of_the_model(subject: Subject) -> None:
    images = targets_table.evaluation_images(subject.path, 2)
    assert images.shape == (2, 1, 8, 8)
    assert images.dtype == np.uint8
