"""The commands `target` and `verify --target`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from qil_deploy.commands.target import target_app
from qil_deploy.commands.verify import verify_command
from qil_deploy.errors import ConfigError, ModelFileError, OutputError, TargetError
from qil_deploy.reports import read_report
from qil_deploy.runtime_tests import device_program
from qil_deploy.runtime_tests.golden import write_golden
from qil_deploy.runtime_tests.targets import DEVICE_FORMS, TARGETS, TargetsReport

WriteModel = Callable[..., Path]

CLASSES = ("cat", "dog", "fox", "hen", "owl")


def call(app: typer.Typer, *arguments: object) -> Result:
    """Run a command; an error of ours passes through unchanged."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, ValueError):
        raise result.exception
    return result


@pytest.fixture
def verify() -> typer.Typer:
    """The command as an application of its own."""
    app = typer.Typer()
    app.command()(verify_command)
    return app


@pytest.fixture(autouse=True)
def nothing_is_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QIL_DEPLOY_TARGETS", str(tmp_path / "targets"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of images, three per class."""
    generator = np.random.default_rng(5)
    for name in CLASSES:
        target = tmp_path / "animals" / "test" / name
        target.mkdir(parents=True)
        for index in range(3):
            Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).save(target / f"{index}.png")
    return tmp_path / "animals"


def test_the_list_names_every_target_and_what_it_needs() -> None:
    result = call(target_app, "list")
    assert result.exit_code == 0
    for name in (*TARGETS, *DEVICE_FORMS):
        assert name in result.output
    assert "ready" in result.output


def test_the_program_for_devices_is_written(tmp_path: Path) -> None:
    result = call(target_app, "program", "-o", tmp_path / "device.pyz")
    assert result.exit_code == 0
    assert "device.pyz is written." in "".join(result.output.splitlines())
    done = subprocess.run(
        [sys.executable, tmp_path / "device.pyz", "--help"], capture_output=True, text=True, check=True
    )
    assert "MODEL.onnx GOLDEN.npz" in " ".join(done.stdout.split())
    with pytest.raises(OutputError, match="is a folder"):
        call(target_app, "program", "-o", tmp_path)


def test_setup_refuses_what_it_does_not_know() -> None:
    with pytest.raises(TargetError, match="there is nothing to set up for 'mips'"):
        call(target_app, "setup", "mips")
    with pytest.raises(TargetError, match=r"there is nothing to set up here for ssh:pi; the device needs Python 3.10"):
        call(target_app, "setup", "ssh:pi")


def test_codes_of_four_images_and_logits_of_as_many_as_are_asked_for(
    verify: typer.Typer, write_model: WriteModel, folder: Path, tmp_path: Path
) -> None:
    arguments = ("--data", folder, "--target", "native", "--json", tmp_path / "r.json")
    assert call(verify, write_model(), *arguments, "--limit", 7).exit_code == 0
    (result,) = read_report(tmp_path / "r.json", TargetsReport).targets
    assert [report.images for report in result.reports] == [4, 7]
    assert call(verify, write_model(), *arguments).exit_code == 0
    (result,) = read_report(tmp_path / "r.json", TargetsReport).targets
    assert [report.images for report in result.reports] == [4]


def test_all_skips_what_cannot_run_with_its_reason(
    verify: typer.Typer, write_model: WriteModel, folder: Path, tmp_path: Path
) -> None:
    model = write_model(metadata={"data": str(folder)})
    result = call(verify, model, "--target", "all", "--target", "native", "--json", tmp_path / "r.json")
    assert result.exit_code == 0
    targets = read_report(tmp_path / "r.json", TargetsReport).targets
    assert [target.target for target in targets] == list(TARGETS)
    assert [target.skipped is None for target in targets] == [name == "native" for name in TARGETS]


def test_a_difference_exits_with_1_after_writing_the_report(
    verify: typer.Typer, write_model: WriteModel, folder: Path, tmp_path: Path
) -> None:
    arguments = ("--data", folder, "--target", "native", "--json", tmp_path / "r.json")
    result = call(verify, write_model(ties=True), *arguments, "--limit", 15)
    assert result.exit_code == 1
    assert "Not exact" in result.output
    assert read_report(tmp_path / "r.json", TargetsReport).exact is False


def test_a_target_that_stops_answering_exits_with_2_after_writing_the_report(
    verify: typer.Typer, write_model: WriteModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        device_program, "write_device_program", lambda path: path.write_text("import time; time.sleep(600)")
    )
    arguments = ("--data", folder, "--target", "native", "--json", tmp_path / "r.json", "--timeout", 1)
    result = call(verify, write_model(), *arguments)
    assert result.exit_code == 2
    (target,) = read_report(tmp_path / "r.json", TargetsReport).targets
    assert target.failed is not None
    assert target.failed.startswith("target native has not answered for 1 seconds and was stopped")


def test_golden_vectors_need_no_data_set(verify: typer.Typer, write_model: WriteModel, tmp_path: Path) -> None:
    model = write_model()
    images = np.random.default_rng(6).integers(0, 256, (2, 3, 8, 8), np.uint8)
    write_golden(model, images, "noise", tmp_path / "golden.npz")
    arguments = ("--target", "native", "--golden", tmp_path / "golden.npz")
    assert call(verify, model, *arguments).exit_code == 0
    with pytest.raises(ConfigError, match="--golden brings its own images"):
        call(verify, model, *arguments, "--limit", 3)
    for option in (("--limit", 3), ("--batch-size", 2), ("--data", "digits"), ("--json", tmp_path / "r.json")):
        with pytest.raises(ConfigError, match=f"--golden brings its own images .* {option[0]}"):
            call(verify, model, *arguments[2:], *option)
    assert not (tmp_path / "r.json").exists()


def test_wrong_use_is_refused_before_work(
    verify: typer.Typer, write_model: WriteModel, folder: Path, tmp_path: Path
) -> None:
    model = write_model(metadata={"data": str(folder)})
    with pytest.raises(TargetError, match="there is no target 'arm32'; choose from all, arm64, native"):
        call(verify, model, "--target", "arm32")
    with pytest.raises(TargetError, match="target arm64:cortex-a53 cannot run: "):
        call(verify, model, "--target", "native", "--target", "arm64")
    with pytest.raises(ConfigError, match="--timeout is 0; it must be more than 0 seconds"):
        call(verify, model, "--target", "native", "--timeout", 0)
    with pytest.raises(ConfigError, match="--target takes no --checkpoint"):
        call(verify, model, "--target", "native", "--checkpoint", tmp_path / "c.safetensors")
    with pytest.raises(ModelFileError, match=r"absent\.onnx"):
        call(verify, tmp_path / "absent.onnx", "--target", "native")
