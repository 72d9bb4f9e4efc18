"""The command `report` on the other commands' reports of a real model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from qil_deploy.commands.bench import bench_command
from qil_deploy.commands.doctor import doctor_command
from qil_deploy.commands.report import report_command
from qil_deploy.commands.verify import verify_command
from qil_deploy.errors import ConfigError, DataError, OutputError
from qil_deploy.reports import read_report
from qil_deploy.runtime_tests.report import DeploymentReport

from .conftest import backend, model, verified

Write = Callable[..., Path]
WriteModel = Callable[..., Path]

CLASSES = ("cat", "dog", "fox", "hen", "owl")


def call(command: Callable[..., None], *arguments: object) -> Result:
    """Run a command; an error of ours passes through unchanged."""
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, ValueError):
        raise result.exception
    return result


@pytest.fixture
def folder(tmp_path: Path, images: NDArray[np.uint8]) -> Path:
    """Return a folder of images, three per class."""
    for index, pixels in enumerate(images[:15].transpose(0, 2, 3, 1)):
        target = tmp_path / "animals" / "test" / CLASSES[index % len(CLASSES)]
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target / f"{index}.png")
    return tmp_path / "animals"


def test_all_that_was_measured_of_a_model_on_one_page(write_model: WriteModel, folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    certificate = [{"name": "int32", "worst": 5.0, "bound": 100.0, "where": "conv1"}]
    layers = [{"name": "conv1", "weight_bits": 4, "weight_shape": [4, 3, 3, 3], "largest_input_code": 255}]
    net = write_model(metadata={"certificate": certificate, "layers": layers, "weights": "packed"})
    assert call(verify_command, net, "--data", folder, "--json", run / "verify.json").exit_code == 0
    targets = ("--target", "native", "--limit", 7, "--json", run / "targets.json")
    assert call(verify_command, net, "--data", folder, *targets).exit_code == 0
    quick = ("--repeats", 8, "--warmup", 0, "--caches", "warm")
    assert call(bench_command, net, *quick, "--json", run / "bench.json").exit_code == 0
    call(doctor_command, net, "--json", run / "doctor.json")
    page, outcome = tmp_path / "report.html", tmp_path / "report.json"
    result = call(report_command, run, "-o", page, "--json", outcome)
    assert result.exit_code == 0, result.output
    assert "Equal: " in result.output
    report = read_report(outcome, DeploymentReport)
    (found,) = report.runs
    assert sorted({source.schema.split("/")[0] for source in found.sources}) == [
        "qil_deploy.bench",
        "qil_deploy.doctor",
        "qil_deploy.targets",
        "qil_deploy.verify",
    ]
    (file,) = found.models
    assert file.content is not None
    assert file.content.weight_bits == (4,)
    assert [line.name for line in file.content.certificate] == ["int32"]
    assert {row.what for row in found.exactness} == {"codes", "logits"}
    assert {row.by for row in found.latencies} == {"bench", "while verifying"}
    assert found.diagnosed == (file.sha256,)
    text = page.read_text(encoding="utf-8")
    assert "all 1 lines hold" in text
    assert file.sha256 in text


def test_a_difference_ends_with_1(write: Write, tmp_path: Path) -> None:
    run = write("run", verified(model(), backend("ONNX Runtime (all)", differing=2)))
    result = call(report_command, run, "-o", tmp_path / "r.html")
    assert result.exit_code == 1
    assert "Differs: 2 of 500" in result.output
    assert (tmp_path / "r.html").is_file()


def test_a_report_that_cannot_be_read_ends_with_2_and_the_page_is_written(write: Write, tmp_path: Path) -> None:
    run = write("run", verified(model()))
    (run / "damaged.json").write_text("{")
    result = call(report_command, run, "-o", tmp_path / "r.html")
    assert result.exit_code == 2
    assert "Incomplete: 1,000 numbers of 1 model on 1 target were compared" in result.output
    assert "damaged.json cannot be read" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_nothing_is_written_where_nothing_can_be_reported(write: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        call(report_command, tmp_path / "missing", "-o", tmp_path / "r.html")
    run = write("run", verified(model()))
    with pytest.raises(ConfigError, match="name two files"):
        call(report_command, run, "-o", tmp_path / "r.html", "--json", tmp_path / "x" / ".." / "r.html")
    with pytest.raises(OutputError, match="is a folder"):
        call(report_command, run, "-o", tmp_path)
    assert not (tmp_path / "r.html").exists()


def test_reports_that_are_read_are_not_written_over(write: Write, tmp_path: Path) -> None:
    run = write("run", verified(model()))
    shutil.copy(run / "0.json", tmp_path / "kept.json")
    with pytest.raises(ConfigError, match="is one of the reports that are read"):
        call(report_command, run / "0.json", "-o", tmp_path / "r.html", "--json", run / "0.json")
    with pytest.raises(ConfigError, match="is one of the reports that are read"):
        call(report_command, run, "-o", run / "0.json")
    assert (run / "0.json").read_bytes() == (tmp_path / "kept.json").read_bytes()
