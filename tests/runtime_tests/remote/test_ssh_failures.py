"""Every way in which a device reached by ssh can fail; the sshd is real."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from qil_deploy.runtime_tests import device_program
from qil_deploy.runtime_tests.golden import write_golden
from qil_deploy.runtime_tests.targets import remote_run, worker_process
from tests.runtime_tests.patience import lives, wait_for

from .conftest import (
    Server,
    client_config,
    free_port,
    python,
    run,
    silence_begins,
    sleeping_python,
    use_config,
    write_script,
)


def test_a_device_that_cannot_be_reached(ssh: str, golden: tuple[Path, Path]) -> None:
    del ssh
    sentence = run(f"ssh:127.0.0.1:{free_port()}", golden)
    assert sentence.startswith("failed: it cannot be reached, or the connection broke. Its last words: ssh: connect to")


def test_a_host_that_is_not_known(ssh: str, server: Server, golden: tuple[Path, Path], bin_folder: Path) -> None:
    (server.folder / "strange").write_text(client_config(server.folder, "id", "no_hosts"))
    use_config(bin_folder, server.folder / "strange")
    assert run(ssh, golden).startswith("failed: its host key is not known here, or has changed; log in once by hand")


def test_a_key_that_is_refused(ssh: str, server: Server, golden: tuple[Path, Path], bin_folder: Path) -> None:
    (server.folder / "refused").write_text(client_config(server.folder, "other_id", "known_hosts"))
    use_config(bin_folder, server.folder / "refused")
    assert run(ssh, golden).startswith("failed: it accepts none of this user's keys, and no password is asked for")


def test_a_device_without_a_python(ssh: str, golden: tuple[Path, Path]) -> None:
    sentence = run(ssh, golden, "/absent/python")
    assert sentence.startswith("has no Python '/absent/python'; name another one with --device-python.")
    assert run(ssh, golden, "~/absent python").startswith("has no Python '~/absent python'")


def test_a_device_without_onnxruntime(ssh: str, golden: tuple[Path, Path], tmp_path: Path) -> None:
    sentence = run(ssh, golden, python(tmp_path / "python", options="-S"))
    assert " has no numpy and no onnxruntime; install there: " in sentence
    assert "-m pip install numpy onnxruntime, or name another Python with --device-python." in sentence


def test_a_python_that_is_too_old(ssh: str, golden: tuple[Path, Path], tmp_path: Path) -> None:
    program = shlex.quote("import sys; sys.version_info = (3, 9, 1); exec(sys.argv[1])")
    interpreter = write_script(tmp_path / "python", f'exec {shlex.quote(sys.executable)} -c {program} "$2"')
    sentence = run(ssh, golden, str(interpreter))
    assert sentence == "failed: its Python is 3.9, and 3.10 is the oldest that will do."


def test_an_onnxruntime_that_cannot_read_the_file_tells_its_version(
    ssh: str, golden: tuple[Path, Path], tmp_path: Path
) -> None:
    model = onnx.load(golden[0])
    model.opset_import[0].version = 999
    path, vectors = tmp_path / "future.onnx", tmp_path / "future.npz"
    onnx.save(model, path)
    write_golden(path, np.zeros((1, 3, 8, 8), np.uint8), "blank", vectors)
    sentence = run(ssh, (path, vectors))
    assert f"Its last words: Error: ONNX Runtime {onnxruntime.__version__} cannot load model.onnx" in sentence


def test_a_device_that_is_full(ssh: str, golden: tuple[Path, Path], tmp_path: Path) -> None:
    sentence = run(ssh, golden, python(tmp_path / "python", "ulimit -f 1"))
    assert sentence.startswith("failed: it cannot store qil_device.pyz, of ")
    assert sentence.endswith(": File too large.")


def test_a_device_that_never_starts_is_given_up_and_rid_of_its_process(
    ssh: str, golden: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "_GRACE", 1)
    note = tmp_path / "process"
    interpreter = write_script(tmp_path / "python", f"echo $$ > {note}; exec sleep 600")
    silence_begins(note, monkeypatch)
    assert run(ssh, golden, str(interpreter), timeout=2).startswith("has not answered for 2 seconds and was stopped")
    wait_for(lambda: not lives(note))


def test_a_device_that_stops_in_the_middle_is_given_up_and_tidies_up(
    ssh: str, golden: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself: the connection need not be closed, nor another one opened."""
    monkeypatch.setattr(worker_process, "_GRACE", 120)
    monkeypatch.setattr(remote_run, "_clear", lambda *_: pytest.fail("the device did not end by itself"))
    interpreter, note = sleeping_python(tmp_path)
    silence_begins(note, monkeypatch)
    assert run(ssh, golden, interpreter, timeout=2).startswith("has not answered for 2 seconds and was stopped")
    wait_for(lambda: not lives(note))


def test_a_device_that_does_not_even_tidy_up_is_tidied(
    ssh: str, golden: tuple[Path, Path], server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "_GRACE", 1)
    monkeypatch.setattr(remote_run, "CONNECT_SECONDS", 60)
    note = tmp_path / "process"
    worker = (
        "import os, pathlib, signal, time\nos.kill(os.getppid(), signal.SIGSTOP)\n"
        f"pathlib.Path({str(note)!r}).write_text(str(os.getpid()))\ntime.sleep(600)\n"
    )
    silence_begins(note, monkeypatch)
    monkeypatch.setattr(device_program, "write_device_program", lambda path: path.write_text(worker))
    assert run(ssh, golden, timeout=2).startswith("has not answered for 2 seconds and was stopped")
    wait_for(lambda: not lives(note))
    assert list(server.temporary.iterdir()) == []


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_there_when_this_side_is_ended(
    ssh: str, golden: tuple[Path, Path], number: signal.Signals, tmp_path: Path
) -> None:
    interpreter, note = sleeping_python(tmp_path)
    command = [
        sys.executable,
        "-m",
        "qil_deploy",
        "verify",
        str(golden[0]),
        "--golden",
        str(golden[1]),
        "--target",
        ssh,
    ]
    with subprocess.Popen(
        [*command, "--device-python", interpreter], start_new_session=True, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(lambda: note.is_file() and note.read_text() != "")
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    assert process.returncode in (-number, 128 + number, 1)
    assert "Traceback" not in errors
    wait_for(lambda: not lives(note))
