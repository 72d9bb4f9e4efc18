"""A device behind adb. A stand-in plays it; no phone is asked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qil_deploy.runtime_tests.targets import find_target, verify_targets, worker_process

from .conftest import is_gone, run, sleeping_python, wait_until


def test_a_device_behind_adb_computes_every_code(adb: Path, golden: tuple[Path, Path]) -> None:
    report = verify_targets(golden[0], [find_target("adb:x1", sys.executable)], golden[1])
    assert report.exact is True
    assert report.targets[0].codes is not None
    assert report.targets[0].codes.latency is not None
    assert list(adb.iterdir()) == []


def test_a_device_behind_adb_that_stops_answering(
    adb: Path, golden: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "_GRACE", 1)
    interpreter, note = sleeping_python(tmp_path)
    assert run("adb:x1", golden, interpreter, timeout=3).startswith("has not answered for 3 seconds and was stopped")
    wait_until(lambda: is_gone(int(note.read_text())) and not list(adb.iterdir()))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("adb", "failed: there is more than one device; name one as adb:SERIAL"),
        ("adb:absent", "failed: no such device is connected"),
        ("adb:locked", "failed: it does not allow this machine yet; confirm on its screen"),
        ("adb:asleep", "failed: it cannot be reached"),
    ],
)
def test_devices_that_adb_does_not_reach(adb: Path, golden: tuple[Path, Path], name: str, sentence: str) -> None:
    del adb
    assert run(name, golden).startswith(sentence)


def test_a_device_behind_adb_without_a_python(adb: Path, golden: tuple[Path, Path]) -> None:
    del adb
    assert run("adb:x1", golden, "/absent/python").startswith("has no Python '/absent/python'")
