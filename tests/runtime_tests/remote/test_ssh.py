"""A device reached by ssh computes the same as this machine; the sshd is real."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from numpy.typing import NDArray
from typer.testing import CliRunner

from qil_deploy.commands.verify import verify_command
from qil_deploy.reports import read_report
from qil_deploy.runtime_tests.golden import write_golden
from qil_deploy.runtime_tests.targets import RunOptions, TargetsReport, find_target, run_on_target, verify_targets

from .conftest import FAST, PATIENT, python

WriteModel = Callable[..., Path]
ZOO = Path(__file__).parents[3] / "zoo" / "fashion_mnist"


def test_a_device_computes_every_code(ssh: str, golden: tuple[Path, Path]) -> None:
    report = verify_targets(golden[0], [find_target(ssh, sys.executable), find_target("native")], golden[1])
    there, here = report.targets
    assert report.exact is True
    assert there.codes is not None
    assert here.codes is not None
    assert there.codes.levels == here.codes.levels
    assert there.codes.environment == here.codes.environment
    assert there.codes.latency is not None
    assert there.codes.latency.runs == 20


@pytest.mark.parametrize("name", ["w2a2", "w4a4"])
def test_an_alias_of_the_configuration_computes_every_code_of_the_zoo(ssh: str, name: str, tmp_path: Path) -> None:
    del ssh
    noise = np.random.default_rng(3).integers(0, 256, (2, 1, 28, 28), dtype=np.uint8)
    model = ZOO / f"{name}.onnx"
    write_golden(model, noise, "noise", tmp_path / "golden.npz")
    seen: list[str] = []
    options = RunOptions(levels=("disabled", "all"), timeout=PATIENT)
    report = run_on_target(
        find_target("ssh:device", sys.executable), model, tmp_path / "golden.npz", options, seen.append
    )
    assert report.compared
    assert report.differing == 0
    assert [level.level for level in report.levels] == ["disabled", "all"]
    assert report.latency is None
    assert any(line.startswith("received ") and line.endswith("MB of model.onnx") for line in seen)
    assert seen[-1] == "all, every tensor: 2 of 2 images"


def test_the_first_difference_on_a_device_is_named(ssh: str, golden: tuple[Path, Path]) -> None:
    with np.load(golden[1]) as stored:
        arrays = dict(stored)
    name = json.loads(str(arrays["about"]))["tensors"][2]
    arrays[name] = arrays[name].copy()
    arrays[name][1, 2, 3, 0] += 3
    np.savez(golden[1], **arrays)
    report = run_on_target(find_target(ssh, sys.executable), *golden, FAST)
    (level,) = report.levels
    first = level.first_difference
    assert first is not None
    assert (first.tensor, first.differing, first.index, first.largest_step) == (name, 1, (1, 2, 3, 0), 3)


def test_names_that_a_shell_would_read_are_names(
    ssh: str, golden: tuple[Path, Path], images: NDArray[np.uint8], tmp_path: Path
) -> None:
    model = golden[0].rename(tmp_path / "-x '\" $(touch pwned); é.onnx")
    data = golden[1].rename(tmp_path / "-y `touch pwned`.npz")
    interpreter = python(tmp_path / "it's $HOME" / "py thon")
    report = run_on_target(find_target(ssh, interpreter), model, data, FAST)
    assert report.differing == 0
    assert report.model == model.name
    np.save(tmp_path / "images.npy", images[:2])
    report = run_on_target(find_target(ssh, interpreter), model, tmp_path / "images.npy", FAST)
    assert not report.compared
    assert not list(tmp_path.rglob("pwned"))


def test_what_a_login_prints_does_no_harm(ssh: str, golden: tuple[Path, Path], tmp_path: Path) -> None:
    interpreter = python(tmp_path / "python", "echo Welcome; printf 'no end'; printf '\\033[2Jhello\\n' >&2")
    assert run_on_target(find_target(ssh, interpreter), *golden, FAST).differing == 0


def test_the_command_on_a_device(ssh: str, golden: tuple[Path, Path], write_model: WriteModel, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(verify_command)
    options = ["--golden", golden[1], "--json", tmp_path / "r.json", "--target", "native", "--target", ssh]
    good = [*options, "--device-python", sys.executable, "--repeats", "5", "--threads", "2"]

    def verify(model: Path, *arguments: object) -> int:
        return CliRunner().invoke(app, [str(argument) for argument in (model, *arguments)]).exit_code

    assert verify(golden[0], *good) == 0
    there = read_report(tmp_path / "r.json", TargetsReport).targets[1]
    assert there.target == ssh
    assert there.codes is not None
    assert there.codes.threads == 2
    assert there.codes.latency is not None
    assert there.codes.latency.runs == 5
    other = write_model("ties.onnx", ties=True)
    noise = np.random.default_rng(6).integers(0, 256, (8, 3, 8, 8), np.uint8)
    write_golden(other, noise, "noise", golden[1])
    assert verify(other, *good) == 1
    assert verify(other, *options, "--device-python", "/absent/python") == 2
    report = read_report(tmp_path / "r.json", TargetsReport)
    assert report.targets[0].codes is not None
    assert report.targets[1].failed is not None
