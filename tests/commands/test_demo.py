"""`demo`: every step, and the results it must show."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from qil_deploy.commands.demo import plot_stage
from qil_deploy.onnx_io.model_file import read_model
from qil_deploy.runtime_tests import VerifyReport, read_report

if TYPE_CHECKING:
    from tests.command_line import Outcome
    from tests.commands.conftest import Run

Call = Callable[..., "Outcome"]


def check_picture(path: Path) -> None:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 300
        assert len(image.convert("L").getcolors(256) or ()) > 10


def test_the_picture_of_a_stage(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "intervals.png"
    assert plot_stage(run.quantized, path) == path
    check_picture(path)


def test_a_checkpoint_without_intervals_has_no_picture(run: Run, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="holds no prepared model"):
        plot_stage(run.float, tmp_path / "intervals.png")
    assert not list(tmp_path.iterdir())


def test_an_output_below_a_file_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot write" in refused("demo", "--out", tmp_path / "file" / "demo", printed=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_the_demo_shows_what_it_promises(call: Call, tmp_path: Path) -> None:
    """The accuracy, exactness and sizes of `make demo`; an earlier run in the folder is replaced."""
    stale = tmp_path / "demo" / "run" / "float.safetensors"
    stale.parent.mkdir(parents=True)
    stale.write_text("of an interrupted demo")
    outcome = call("demo", "--out", tmp_path / "demo")
    assert (outcome.code, outcome.error) == (0, "")
    floating, four, two = json.loads((tmp_path / "demo" / "results.json").read_text())["models"]
    assert [floating["name"], four["name"], two["name"]] == ["float", "w4a4", "w2a2"]
    assert floating["images"] == four["images"] == 360
    assert four["runtime_accuracy"] >= floating["runtime_accuracy"] - 1.0
    for stage in (four, two):
        assert stage["differing_logits"] == 0
        assert stage["runtime_accuracy"] == stage["frozen_accuracy"]
        report = read_report(tmp_path / "demo" / f"{stage['name']}_verify.json", VerifyReport)
        assert report.exact
        assert {backend.name for backend in report.backends if backend.must_equal} == {
            *(f"ONNX Runtime ({level})" for level in ("disabled", "basic", "extended", "all")),
            "frozen PyTorch",
        }
        read_model(tmp_path / "demo" / stage["model"])
        check_picture(tmp_path / "demo" / f"{stage['name']}_intervals.png")
        assert f"{stage['runtime_accuracy']:.2f} %" in outcome.out
        assert f"{stage['size']:,} B" in outcome.out
    assert four["size"] * 6 <= floating["size"]
    assert two["size"] * 10 <= floating["size"]
    assert "differing logits" in outcome.out
