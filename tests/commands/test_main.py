"""The entry points: exit codes, one sentence per error, and help."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qil_deploy import __version__
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


@pytest.mark.parametrize("door", [("qil_deploy", "export"), ("qil_deploy.export",)])
def test_the_usage_is_what_has_to_be_typed(door: tuple[str, ...]) -> None:
    done = shell("-m", *door, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    usage = next(line for line in done.stdout.splitlines() if "Usage:" in line)
    assert usage.split()[:5] == ["Usage:", "python", "-m", *door[:1], *(door[1:] or ["[OPTIONS]"])]
    assert "[OPTIONS]" in usage
    assert "CHECKPOINT" in usage
    for wrong in ("--bogus", "a"):
        done = shell("-m", *door, wrong)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("Error: ")
        assert done.stderr.endswith(f" See: python -m {' '.join(door)} --help.\n")


@pytest.mark.parametrize("door", ["qil_deploy", "qil_deploy.export"])
def test_the_version(door: str) -> None:
    done = shell("-m", door, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"qil-deploy {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--bogus",),
        ("bogus",),
        ("verify",),
        ("verify", "a", "b"),
        ("verify", "a", "--threads", "b"),
        ("verify", "--between"),
        ("export", "a", "-o", "b", "--format", "c"),
        ("target", "bogus"),
        ("target", "setup"),
    ],
)
def test_wrong_use_is_one_sentence(call: Call, arguments: tuple[str, ...]) -> None:
    outcome = call(*arguments)
    assert outcome.code == 2
    if arguments:
        assert outcome.out == ""
        assert outcome.error.startswith("Error: ")
        assert outcome.error.endswith(" --help.\n")
        assert outcome.error.count("\n") == 1


def test_sentences_of_wrong_use_have_no_remains_of_the_parser(call: Call) -> None:
    assert call("verfy").error.startswith("Error: No such command 'verfy'. Did you mean 'verify'? See: ")
    assert ": 'c' is not one of 'qlinear', 'qdq'. See: " in call("export", "a", "-o", "b", "--format", "c").error


# Runs `python -m MODULE ARGUMENTS` where some packages are not installed.
RUN_WITHOUT = """
import json, runpy, sys
missing, module, *arguments = sys.argv[1:]
sys.modules.update(dict.fromkeys(json.loads(missing)))  # None makes an import of that name fail
sys.argv = [module, *arguments]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
EXTRAS = ("accelerate", "matplotlib", "onnx", "onnx_ir", "onnxscript", "pydantic", "safetensors", "torch")


def without(packages: Sequence[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return shell("-c", RUN_WITHOUT, json.dumps(packages), *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("qil_deploy.export", "c.safetensors", "-o", "m.onnx"),
        ("qil_deploy", "export", "c.safetensors", "-o", "m.onnx"),
        ("qil_deploy", "train", "digits_resnet14"),
        ("qil_deploy", "sensitivity", "c.safetensors"),
        ("qil_deploy", "demo"),
    ],
)
def test_what_extras_bring_is_named_where_it_is_missing(arguments: tuple[str, ...]) -> None:
    """As on a device, for any command, started in any way."""
    done = without(EXTRAS, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: this command needs the package '")
    assert done.stderr.endswith("'; install it with: pip install 'qil-deploy[train,export]'.\n")
    assert done.stderr.count("\n") == 1


BROWSER = ("h11", "playwright", "starlette", "uvicorn")
MODEL = str(Path(__file__).parents[2] / "zoo" / "fashion_mnist" / "w2a2.onnx")


@pytest.mark.parametrize("command", [("phone", MODEL), ("bench", MODEL, "--target", "wasm")])
def test_the_extra_of_browsers_is_named_where_it_is_missing(command: tuple[str, ...]) -> None:
    done = without(BROWSER, "qil_deploy", *command)
    assert (done.returncode, done.stdout) == (2, "")
    sentence = r"Error: this command needs the package '\w+'; install it with: pip install 'qil-deploy\[browser\]'\.\n"
    assert re.fullmatch(sentence, done.stderr)


def test_targets_are_listed_without_the_extra_of_browsers() -> None:
    done = without(BROWSER, "qil_deploy", "target", "list")
    assert (done.returncode, done.stderr) == (0, "")
    assert "pip install 'qil-deploy[browser]'" in " ".join(done.stdout.split())


@pytest.mark.parametrize("door", ["qil_deploy", "qil_deploy.export"])
def test_help_and_version_need_no_extras(door: str) -> None:
    for option in ("--help", "--version"):
        done = without(EXTRAS, door, option)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_a_package_that_everything_needs(package: str) -> None:
    done = without([package], "qil_deploy", "inspect", "m.onnx")
    sentence = f"Error: the package '{package}' is missing; install it with: pip install qil-deploy.\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)


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
    """A sentence about incorrect use would hide a bug."""

    def fail(*_: object, **__: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("qil_deploy.files.ensure_writable", fail)
    with pytest.raises(KeyError, match="a bug"):
        main(["export", "x.safetensors", "-o", str(tmp_path / "x.onnx")])
