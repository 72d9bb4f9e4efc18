"""A device reached by adb, played by a stand-in; no phone is asked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qil_deploy.runtime_tests.targets import find_target, verify_targets, worker_process
from tests.runtime_tests.patience import lives, wait_for

from .conftest import run, silence_begins, sleeping_python


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
    silence_begins(note, monkeypatch)
    assert run("adb:x1", golden, interpreter, timeout=2).startswith("has not answered for 2 seconds and was stopped")
    wait_for(lambda: not lives(note) and not list(adb.iterdir()))


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
