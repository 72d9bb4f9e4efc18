"""A real sshd on this machine, a stand-in for adb, and Pythons that fail in various ways."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from getpass import getuser
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from qil_deploy.errors import TargetError
from qil_deploy.runtime_tests.golden import write_golden
from qil_deploy.runtime_tests.targets import RunOptions, find_target, run_on_target, worker_process
from tests.runtime_tests.patience import Clock, lives, wait_for

WriteModel = Callable[..., Path]
PATIENT = 300.0  # seconds, for what is never silent
FAST = RunOptions(timeout=PATIENT)


@dataclass(frozen=True)
class Server:
    """An sshd on this machine, with keys of its own.

    Attributes:
        folder: where its files are: `ssh_config` and `known_hosts` for clients, `id` that it accepts, `other_id`.
        port: where it listens, on 127.0.0.1.
        temporary: the folder of temporary files of whoever logs in.
    """

    folder: Path
    port: int
    temporary: Path


def free_port() -> int:
    """Return an unused port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Tell whether a port is in use."""
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running sshd; skips if there is none, or it accepts nobody."""
    sshd = shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))
    for tool in (sshd, shutil.which("ssh"), shutil.which("ssh-keygen")):
        if tool is None:
            pytest.skip("OpenSSH's server and client are not installed")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # what its service does; it does not start without
    folder = tmp_path_factory.mktemp("sshd")
    found = Server(folder, free_port(), folder / "temporary")
    found.temporary.mkdir()
    for name in ("host_key", "id", "other_id"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    (folder / "sshd_config").write_text(
        f"Port {found.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/id.pub\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f"PermitRootLogin prohibit-password\nSetEnv TMPDIR={found.temporary}\n"
    )
    kind, key, *_ = (folder / "host_key.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{found.port} {kind} {key}\n")
    (folder / "no_hosts").touch()
    (folder / "ssh_config").write_text(client_config(folder, "id", "known_hosts") + f"Host device\nPort {found.port}\n")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(sshd), "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    try:
        trial = ["ssh", "-F", str(folder / "ssh_config"), "-o", "BatchMode=yes", "device", "true"]
        wait_for(lambda: process.poll() is not None or listens(found.port))
        if process.poll() is not None:
            pytest.skip(f"sshd does not run here: {(folder / 'log').read_text()}")
        if subprocess.run(trial, capture_output=True, check=False).returncode != 0:
            pytest.skip(f"sshd lets nobody in: {(folder / 'log').read_text()}")
        yield found
    finally:
        process.terminate()
        process.wait()


def client_config(folder: Path, identity: str, hosts: str) -> str:
    """An ssh configuration that ignores the user's own files."""
    return (
        f"IdentityFile {folder / identity}\nIdentitiesOnly yes\nIdentityAgent none\n"
        f"UserKnownHostsFile {folder / hosts}\nGlobalKnownHostsFile none\nHost device\nHostName 127.0.0.1\n"
    )


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first folder on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def write_script(path: Path, content: str) -> Path:
    """Write a shell script."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{content}\n")
    path.chmod(0o755)
    return path


def use_config(bin_folder: Path, config: Path) -> None:
    """Let `ssh` read a configuration, and wait for a busy machine's answer."""
    program = shutil.which("ssh", path=os.defpath)
    write_script(bin_folder / "ssh", f'exec {program} -F {config} -o ConnectTimeout={PATIENT:.0f} "$@"')


@pytest.fixture
def ssh(server: Server, bin_folder: Path) -> Iterator[str]:
    """The name of the target; the device must be clean afterwards."""
    use_config(bin_folder, server.folder / "ssh_config")
    yield f"ssh:{getuser()}@127.0.0.1:{server.port}"
    wait_for(lambda: not list(server.temporary.iterdir()))


@pytest.fixture
def golden(write_model: WriteModel, images: NDArray[np.uint8], tmp_path: Path) -> tuple[Path, Path]:
    """A small model and golden vectors of three images."""
    model = write_model()
    write_golden(model, images[:3], "noise", tmp_path / "golden.npz")
    return model, tmp_path / "golden.npz"


def silence_begins(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the seconds until a silent device is given up from when a process there has written its number."""
    monkeypatch.setattr(worker_process, "time", Clock(lambda: lives(note)))


def python(path: Path, before: str = "", options: str = "") -> str:
    """Write a script that does something and then runs Python; return its path."""
    return str(write_script(path, f'{before}\nexec {shlex.quote(sys.executable)} {options} "$@"'))


def sleeping_python(folder: Path) -> tuple[str, Path]:
    """A Python whose onnxruntime never finishes loading, and the file to which it writes its process's number."""
    note = folder / "process"
    package = folder / "packages" / "onnxruntime"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        f"import os, pathlib, time\npathlib.Path({str(note)!r}).write_text(str(os.getpid()))\ntime.sleep(600)\n"
    )
    return python(folder / "python", f"export PYTHONPATH={shlex.quote(str(folder / 'packages'))}"), note


def run(name: str, golden: tuple[Path, Path], interpreter: str = sys.executable, timeout: float = PATIENT) -> str:
    """Run a model on a device that cannot run it; return the message without the target's name."""
    with pytest.raises(TargetError) as caught:
        run_on_target(find_target(name, interpreter), *golden, RunOptions(timeout=timeout))
    sentence = str(caught.value)
    assert sentence.startswith(f"target {name} ")
    assert "Traceback" not in sentence
    return sentence.removeprefix(f"target {name} ")


# A stand-in for adb: the device is this machine, with an environment and a folder of temporary files of its own. No
# phone was asked.
ADB = """
serial=
if [ "$1" = -s ]; then serial=$2; shift 2; fi
case "$serial" in
    absent) echo "adb: device 'absent' not found" >&2; exit 1;;
    locked) echo "adb: device unauthorized." >&2; exit 1;;
    asleep) echo "adb: device offline" >&2; exit 1;;
    "") echo "adb: more than one device/emulator" >&2; exit 1;;
esac
[ "$#" = 3 ] && [ "$1 $2" = "shell -T" ] || { echo "adb: usage" >&2; exit 1; }
cd /
exec env -i PATH="$PATH" HOME="$HOME" TMPDIR={temporary} setsid --wait sh -c "$3"
"""


@pytest.fixture
def adb(bin_folder: Path, tmp_path: Path) -> Path:
    """Put the stand-in on the PATH; return the folder of temporary files of its device."""
    if shutil.which("setsid") is None:
        pytest.skip("the stand-in for adb needs setsid")
    (tmp_path / "device").mkdir()
    write_script(bin_folder / "adb", ADB.replace("{temporary}", str(tmp_path / "device")))
    return tmp_path / "device"
