"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qil_deploy.errors import OutputError
from qil_deploy.files import atomic_path, ensure_writable, remove_unfinished, write_bytes, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_and_bytes_arrive(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "deep" / "a.txt", "é")
    write_bytes(tmp_path / "b.bin", b"\0\1")
    assert (tmp_path / "new" / "deep" / "a.txt").read_bytes() == b"\xc3\xa9"
    assert (tmp_path / "b.bin").read_bytes() == b"\0\1"
    assert names(tmp_path) == ["b.bin", "new"]


def test_the_destination_appears_only_at_the_end_and_temporaries_keep_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")
    with atomic_path(path) as temporary:
        assert temporary.suffix == ".onnx"
        assert temporary.parent == tmp_path
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["model.onnx"]


@pytest.mark.parametrize("error", [ValueError("mistake"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")

    def write_half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["model.onnx"]


def test_a_full_disk_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"cannot write .*a\.bin: No space left on device\."):
        write_bytes(tmp_path / "a.bin", b"content")
    assert names(tmp_path) == []


def test_a_failing_rename_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Path:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match=r"cannot write .*a\.bin: Permission denied\."):
        write_bytes(tmp_path / "a.bin", b"content")
    assert names(tmp_path) == []


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder; name a file to write"):
        ensure_writable(tmp_path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a.txt", tmp_path / "file" / "b" / "a.txt"):
        with pytest.raises(OutputError, match=r"cannot write .*a\.txt: .*Choose a folder that you may write to"):
            ensure_writable(path)


def test_results_have_the_permissions_of_any_other_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "")
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_checking_leaves_nothing_behind(tmp_path: Path) -> None:
    ensure_writable(tmp_path / "a.txt")
    assert names(tmp_path) == []


def killed_writer(folder: Path, name: str) -> Path:
    """Return the files that a writer killed in the middle leaves."""
    program = (
        "import os, signal, sys; from pathlib import Path; from qil_deploy.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(folder / name)], check=False)
    (left,) = (path for path in folder.iterdir() if path.read_text() == "half")
    return left


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    left = killed_writer(tmp_path, "model.safetensors")
    assert left.suffix == ".safetensors"
    assert remove_unfinished(tmp_path) == [left]
    assert names(tmp_path) == []


def test_what_a_living_writer_writes_stays(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        assert remove_unfinished(tmp_path) == []
        command = "import sys; from pathlib import Path; from qil_deploy.files import remove_unfinished as remove;"
        command += "print(len(remove(Path(sys.argv[1]))))"
        other = subprocess.run(
            [sys.executable, "-c", command, str(tmp_path)], capture_output=True, text=True, check=True
        )
        assert other.stdout == "0\n"
    assert names(tmp_path) == ["a.txt"]


def test_files_of_the_user_stay(tmp_path: Path) -> None:
    own = [
        ".a-unfinished-notes.txt",
        ".a-12345678.txt",
        "a-unfinished-12345678.txt",
        ".a-unfinished-1234567.txt",
        ".hidden",
    ]
    for name in own:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".a-unfinished-12345678.txt").mkdir()
    (tmp_path / ".b-unfinished-12345678.txt").symlink_to(tmp_path / ".hidden.txt")
    before = names(tmp_path)
    assert remove_unfinished(tmp_path) == []
    assert names(tmp_path) == before
    assert remove_unfinished(tmp_path / "absent") == []


def test_a_long_name_is_written_as_well(tmp_path: Path) -> None:
    name = "x" * 240 + ".json"
    write_text(tmp_path / name, "a")
    assert names(tmp_path) == [name]
