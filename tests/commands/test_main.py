"""The entry points: exit codes, one sentence per error, and help."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qil_deploy.commands import main

if TYPE_CHECKING:
    from tests.command_line import Outcome

Call = Callable[..., "Outcome"]
COMMANDS = ("train", "export", "verify", "bench", "inspect", "doctor", "target", "demo")


def shell(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_names_every_command(call: Call) -> None:
    outcome = call("--help")
    assert outcome.code == 0
    for command in COMMANDS:
        assert f" {command} " in outcome.out
        assert call(command, "--help").code == 0


def test_no_or_an_unknown_command_is_wrong_use(call: Call) -> None:
    assert call().code == 2
    outcome = call("deploy")
    assert outcome.code == 2
    assert "deploy" in outcome.error
    assert "Traceback" not in outcome.error


@pytest.mark.parametrize("module", ["qil_deploy", "qil_deploy.export"])
def test_a_process_ends_with_one_sentence_and_exit_code_2(module: str, tmp_path: Path) -> None:
    command = ["-m", module] + (["export"] if module == "qil_deploy" else [])
    done = shell(*command, tmp_path / "absent.safetensors", "-o", tmp_path / "model.onnx")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: checkpoint ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_brackets_in_an_error_are_printed_as_they_are(refused: Callable[..., str]) -> None:
    assert "absent[bold].onnx" in refused("inspect", "absent[bold].onnx")
    assert r"absent\[/red].onnx" in refused("inspect", r"absent\[/red].onnx")


def test_a_missing_package_is_named(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device, which has neither torch nor onnx."""
    monkeypatch.setitem(sys.modules, "torch", None)
    sentence = refused("train", "digits_resnet14")
    assert sentence == (
        "this command needs the package 'torch'; install it with: pip install 'qil-deploy[train,export]'."
    )


def test_errors_that_are_not_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A sentence about wrong use would hide a bug."""

    def fail(*_: object, **__: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("qil_deploy.files.ensure_writable", fail)
    with pytest.raises(KeyError, match="a bug"):
        main(["export", "x.safetensors", "-o", str(tmp_path / "x.onnx")])
