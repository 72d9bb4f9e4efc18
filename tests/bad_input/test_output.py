"""Destinations of results: a full disk, devices, closed pipes, terminals that cannot show a letter, Ctrl-C."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

from qil_deploy.datasets import ImageFolder, ImageSet

from .conftest import ZOO

if TYPE_CHECKING:
    from tests.command_line import Outcome

MODEL = ZOO / "w2a2.onnx"
COMMANDS = ("inspect", "doctor", "bench", "verify")


def start(arguments: Sequence[object], stdout: int | IO[bytes], **variables: str) -> subprocess.Popen[bytes]:
    """Start the command line in a process of its own."""
    command = [sys.executable, "-m", "qil_deploy", *map(str, arguments)]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, env=os.environ | variables)


@pytest.mark.parametrize("command", COMMANDS)
def test_reports_go_to_files_alone(model: Path, refused: Callable[..., str], tmp_path: Path, command: str) -> None:
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    (tmp_path / "file").touch()
    for path in (tmp_path, Path("/dev/full"), Path("/dev/null"), pipe, tmp_path / "file" / "r.json"):
        assert str(path) in refused(command, model, "--json", path)
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_report_is_written_through_a_link(model: Path, call: Callable[..., Outcome], tmp_path: Path) -> None:
    link, target = tmp_path / "link.json", tmp_path / "target.json"
    target.write_text("old")
    link.symlink_to(target)
    assert call("inspect", model, "--json", link).code == 0
    assert link.is_symlink()
    assert json.loads(target.read_text())["schema"] == "qil_deploy.inspect/1"


def test_the_table_is_shown_though_the_disk_is_full(
    model: Path, images: Path, call: Callable[..., Outcome], tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        outcome = call("verify", model, "--data", images, "--json", tmp_path / "r.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outcome.code == 2
    assert "Exact: every backend" in outcome.out
    assert f"cannot write {tmp_path / 'r.json'}: File too large." in outcome.error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.onnx"]


def test_a_pipe_that_nobody_reads() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with start(["inspect", MODEL], writing) as process:
        os.close(writing)
        _, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (141, b"")


def test_a_full_standard_output() -> None:
    with Path("/dev/full").open("wb") as full, start(["inspect", MODEL], full) as process:
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 2
    assert errors.decode() == "Error: the output cannot be read or written: No space left on device.\n"


def test_no_standard_output_at_all() -> None:
    command = '"$0" -m qil_deploy inspect "$1" >&-'
    done = subprocess.run(["sh", "-c", command, sys.executable, str(MODEL)], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_no_terminal_can_show(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / os.fsdecode(b"r\xe9sultat \xff.onnx")
    shutil.copy(MODEL, path)
    with start(["inspect", path], subprocess.PIPE, PYTHONIOENCODING=encoding) as process:
        shown, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (0, b"")
    assert rb"sultat \udcff.onnx" in shown
    with start(["inspect", tmp_path / "\udcff"], subprocess.PIPE, PYTHONIOENCODING=encoding) as process:
        shown, errors = process.communicate(timeout=100)
    assert (process.returncode, shown) == (2, b"")
    assert rb"\udcff does not exist" in errors


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_verification_keeps_what_it_has(
    model: Path, images: Path, call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, batches = ImageFolder.images, 0

    def interrupted(self: ImageFolder, start: int, stop: int, shape: tuple[int, int, int]) -> ImageSet:
        nonlocal batches
        batches += 1
        if batches == 2:
            signal.raise_signal(signal.SIGINT)
        return read(self, start, stop, shape)

    monkeypatch.setattr(ImageFolder, "images", interrupted)
    before = signal.getsignal(signal.SIGINT)
    outcome = call("verify", model, "--data", images, "--batch-size", 3, "--json", tmp_path / "r.json")
    assert outcome.code == 130, outcome
    assert "Interrupted: this is of the first 6 of 10 images." in outcome.out
    content = json.loads((tmp_path / "r.json").read_text())
    assert (content["images"], content["exact"]) == (6, True)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_twice_ends_at_once(
    model: Path, images: Path, call: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*_: object) -> ImageSet:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("went on")

    monkeypatch.setattr(ImageFolder, "images", hang)
    outcome = call("verify", model, "--data", images, "--json", tmp_path / "r.json")
    assert (outcome.code, outcome.out) == (130, "")
    assert "Traceback" not in outcome.error
    assert not (tmp_path / "r.json").exists()


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("command", ["inspect", "doctor"])
def test_ctrl_c_ends_short_commands(
    model: Path, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("qil_deploy.onnx_io.model_file._read_bytes", interrupt)
    outcome = call(command, model)
    assert (outcome.code, outcome.out) == (130, "")
    assert "Traceback" not in outcome.error
