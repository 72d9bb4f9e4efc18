"""One writer per folder: the holder is named, and holds the folder no longer than it lives."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qil_deploy.errors import OutputError
from qil_deploy.file_locks import open_locked
from qil_deploy.folder_lock import LOCK_NAME, locked_folder

HOLD = """
import sys, time
from pathlib import Path
from qil_deploy.folder_lock import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("held", flush=True)
    {body}
"""
WAIT = "time.sleep(100)"
FORK = """
    import os
    if os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(100)
"""


def holder(folder: Path, body: str = WAIT) -> subprocess.Popen[str]:
    """Start a process that holds a folder, and wait until it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(body=body), str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_folder_is_free_again_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with locked_folder(tmp_path):
            assert (tmp_path / LOCK_NAME).is_file()
        assert list(tmp_path.iterdir()) == []


def test_a_folder_has_one_holder_who_is_named(tmp_path: Path) -> None:
    with locked_folder(tmp_path):
        sentence = rf"is being written by process {os.getpid()} on .+ since 2\d{{3}}-.+; wait until it has ended"
        with pytest.raises(OutputError, match=sentence), locked_folder(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_holder_in_another_process_is_named(tmp_path: Path) -> None:
    process = holder(tmp_path)
    try:
        with pytest.raises(OutputError, match=f"is being written by process {process.pid} on"), locked_folder(tmp_path):
            pass
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_dies_with_its_process(tmp_path: Path, ending: signal.Signals) -> None:
    process = holder(tmp_path)
    process.send_signal(ending)
    process.wait()
    assert (tmp_path / LOCK_NAME).is_file()
    with locked_folder(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK_NAME).read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_dies_with_its_process_even_if_a_forked_child_lives_on(tmp_path: Path) -> None:
    process = holder(tmp_path, FORK)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    try:
        os.kill(child, 0)  # it lives
        with locked_folder(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_an_error_frees_the_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked_folder(tmp_path):
        raise KeyError
    with locked_folder(tmp_path):
        pass


def test_what_the_lock_file_says_is_shown_as_text(tmp_path: Path) -> None:
    path = tmp_path / LOCK_NAME
    path.write_bytes(b"\x1b[31m" + b"x" * 10**5 + b"\xff")
    held = open_locked(path)
    assert held is not None
    with held, pytest.raises(OutputError) as caught, locked_folder(tmp_path):
        pass
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_lock_file_that_is_none_is_refused(tmp_path: Path, kind: str) -> None:
    path, elsewhere = tmp_path / LOCK_NAME, tmp_path / "elsewhere"
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(elsewhere)
    with pytest.raises(OutputError, match=re.escape(f"cannot write {path}")), locked_folder(tmp_path):
        pass
    assert not elsewhere.exists()
