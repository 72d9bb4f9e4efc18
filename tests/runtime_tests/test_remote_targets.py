"""Devices: a real sshd on this machine, a stand-in for adb, and every way in which a device can fail."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from getpass import getuser
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import typer
from numpy.typing import NDArray
from typer.testing import CliRunner

from qil_deploy.commands.verify import verify_command
from qil_deploy.errors import TargetError
from qil_deploy.reports import read_report
from qil_deploy.runtime_tests.golden import write_golden
from qil_deploy.runtime_tests.targets import (
    RunOptions,
    TargetsReport,
    find_target,
    run_on_target,
    target_names,
    target_state,
    verify_targets,
    watched,
)
from qil_deploy.runtime_tests.targets import run as run_module

WriteModel = Callable[..., Path]

ZOO = Path(__file__).parents[2] / "zoo" / "fashion_mnist"
FAST = RunOptions(timeout=60)


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
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running sshd; skips where there is none, or where it lets nobody in."""
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
        for _ in range(50):
            if process.poll() is not None or subprocess.run(trial, capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.1)
        else:
            pytest.skip(f"sshd lets nobody in: {(folder / 'log').read_text()}")
        if process.poll() is not None:
            pytest.skip(f"sshd does not run here: {(folder / 'log').read_text()}")
        yield found
    finally:
        process.terminate()
        process.wait()


def client_config(folder: Path, identity: str, hosts: str) -> str:
    """An ssh configuration that leaves the user's own files alone."""
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
    """Let `ssh` read a configuration."""
    write_script(bin_folder / "ssh", f'exec {shutil.which("ssh", path=os.defpath)} -F {config} "$@"')


@pytest.fixture
def ssh(server: Server, bin_folder: Path) -> Iterator[str]:
    """The name of the target; nothing may be left on the device afterwards."""
    use_config(bin_folder, server.folder / "ssh_config")
    yield f"ssh:{getuser()}@127.0.0.1:{server.port}"
    wait_until(lambda: not list(server.temporary.iterdir()))


@pytest.fixture
def golden(write_model: WriteModel, images: NDArray[np.uint8], tmp_path: Path) -> tuple[Path, Path]:
    """A small model and golden vectors of three images."""
    model = write_model()
    write_golden(model, images[:3], "noise", tmp_path / "golden.npz")
    return model, tmp_path / "golden.npz"


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until something holds; fail if it does not."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_gone(process: int) -> bool:
    """Tell whether a process has ended."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def python(path: Path, before: str = "", options: str = "") -> str:
    """Write a script that does something and then is Python; return its path."""
    return str(write_script(path, f'{before}\nexec {shlex.quote(sys.executable)} {options} "$@"'))


def sleeping_python(folder: Path) -> tuple[str, Path]:
    """A Python whose onnxruntime never comes up; and the file where that leaves its process's number."""
    note = folder / "process"
    package = folder / "packages" / "onnxruntime"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        f"import os, pathlib, time\npathlib.Path({str(note)!r}).write_text(str(os.getpid()))\ntime.sleep(600)\n"
    )
    return python(folder / "python", f"export PYTHONPATH={shlex.quote(str(folder / 'packages'))}"), note


def run(name: str, golden: tuple[Path, Path], interpreter: str = sys.executable, timeout: float = 60) -> str:
    """Run a model on a device that cannot do it; return what is said of it, without the target's name."""
    with pytest.raises(TargetError) as caught:
        run_on_target(find_target(name, interpreter), *golden, RunOptions(timeout=timeout))
    sentence = str(caught.value)
    assert sentence.startswith(f"target {name} ")
    assert "Traceback" not in sentence
    return sentence.removeprefix(f"target {name} ")


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
    options = RunOptions(levels=("disabled", "all"), timeout=60)
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
    program = shlex.quote("import sys; sys.version_info = (3, 8, 1); exec(sys.argv[1])")
    interpreter = write_script(tmp_path / "python", f'exec {shlex.quote(sys.executable)} -c {program} "$2"')
    sentence = run(ssh, golden, str(interpreter))
    assert sentence == "failed: its Python is 3.8, and 3.9 is the oldest that will do."


def test_an_onnxruntime_that_cannot_read_the_file_tells_its_version(
    ssh: str, golden: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "broken.onnx").write_bytes(golden[0].read_bytes()[:-100])
    sentence = run(ssh, (tmp_path / "broken.onnx", golden[1]))
    assert f"Its last words: Error: ONNX Runtime {onnxruntime.__version__} cannot load model.onnx" in sentence


def test_a_device_that_is_full(ssh: str, golden: tuple[Path, Path], tmp_path: Path) -> None:
    sentence = run(ssh, golden, python(tmp_path / "python", "ulimit -f 1"))
    assert sentence.startswith("failed: it cannot store device_runner.py, of ")
    assert sentence.endswith(": File too large.")


def test_a_device_that_never_starts_is_given_up_and_rid_of_its_process(
    ssh: str, golden: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "_GRACE", 1)
    note = tmp_path / "process"
    interpreter = write_script(tmp_path / "python", f"echo $$ > {note}; exec sleep 600")
    assert run(ssh, golden, str(interpreter), timeout=2).startswith("has not answered for 2 seconds and was stopped")
    wait_until(lambda: is_gone(int(note.read_text())))


def test_a_device_that_stops_in_the_middle_is_given_up_and_tidies_up(
    ssh: str, golden: tuple[Path, Path], tmp_path: Path
) -> None:
    interpreter, note = sleeping_python(tmp_path)
    start = time.monotonic()
    assert run(ssh, golden, interpreter, timeout=3).startswith("has not answered for 3 seconds and was stopped")
    assert time.monotonic() - start < 3 + watched._GRACE + 5
    wait_until(lambda: is_gone(int(note.read_text())))


def test_a_device_that_does_not_even_tidy_up_is_tidied(
    ssh: str, golden: tuple[Path, Path], server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "_GRACE", 1)
    note = tmp_path / "process"
    (tmp_path / "worker.py").write_text(
        f"import os, pathlib, signal, time\npathlib.Path({str(note)!r}).write_text(str(os.getpid()))\n"
        "os.kill(os.getppid(), signal.SIGSTOP)\ntime.sleep(600)\n"
    )
    monkeypatch.setattr(run_module, "RUNNER", tmp_path / "worker.py")
    assert run(ssh, golden, timeout=2).startswith("has not answered for 2 seconds and was stopped")
    wait_until(lambda: is_gone(int(note.read_text())))
    assert list(server.temporary.iterdir()) == []


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
        wait_until(lambda: note.is_file() and note.read_text() != "", 30)
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    assert process.returncode in (-number, 128 + number, 1)
    assert "Traceback" not in errors
    wait_until(lambda: is_gone(int(note.read_text())))


# What may come back instead of the report of a run: a change to what it prints, and what is said of that.
BAD_REPORTS = {
    "schema": ("report['schema'] = 'x/1'", "brought back no report: .* has schema 'x/1'"),
    "other model": (
        "report['sha256'] = 64 * '0'",
        "sent what is no report of this run: sha256 is '0000.*, and has to be ",
    ),
    "no levels": ("report['levels'] = []", r"sent what is no .*: levels is \(\), and has to be \('all',\)"),
    "escapes": (
        r"report['environment']['cpu'] = 'x\x1b[2J'",
        "sent what is no .*: environment has a text that is too long or cannot be p",
    ),
    "equal, with other codes": (
        "report['levels'][0]['tensors'][0]['sha256'] = 64 * '0'",
        r"sent what is no .*: level all, '.*', sha256 is '0000",
    ),
    "a tensor left out": ("del report['levels'][0]['tensors'][0]", "sent what is no .*: level all, tensors is"),
    "fewer images": ("report['images'] = 1", "sent what is no .*: images is 1"),
    "a browser's": ("report['environment']['browser'] = 'x'", "sent what is no .*: environment, browser known is True"),
    "field": ("del report['threads']", "brought back no report: .* is damaged"),
    "text": ("report = 'hello'", "brought back no report: .* has schema None"),
}


@pytest.mark.parametrize("case", BAD_REPORTS)
def test_reports_that_are_wrong_are_refused(
    ssh: str, golden: tuple[Path, Path], case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = BAD_REPORTS[case]
    (tmp_path / "worker.py").write_text(
        "import contextlib, io, json, sys\nimport runner\nwith contextlib.redirect_stdout(io.StringIO()) as text:\n"
        f"    runner.main()\nreport = json.loads(text.getvalue())\n{change}\nprint(json.dumps(report))\n"
    )
    packages = tmp_path / "packages"
    packages.mkdir()
    shutil.copy(run_module.RUNNER, packages / "runner.py")
    monkeypatch.setattr(run_module, "RUNNER", tmp_path / "worker.py")
    with pytest.raises(TargetError, match=f"target {ssh} {message}"):
        run_on_target(find_target(ssh, python(tmp_path / "py", f"export PYTHONPATH={packages}")), *golden, FAST)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import os; os.kill(os.getpid(), 4)", "failed: the run was ended by signal 4 (SIGILL)."),
        ("raise SystemExit('it is broken')", "brought back no report: "),
        ("raise SystemExit(7)", "failed with exit code 7."),
    ],
)
def test_runs_that_fail_end_with_a_sentence(
    ssh: str,
    golden: tuple[Path, Path],
    script: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "worker.py").write_text(script)
    monkeypatch.setattr(run_module, "RUNNER", tmp_path / "worker.py")
    assert run(ssh, golden).startswith(message)


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


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("ssh:pi", ("--", "pi")),
        ("ssh:me@pi.local", ("-l", "me", "--", "pi.local")),
        ("ssh:me@pi:2222", ("-l", "me", "-p", "2222", "--", "pi")),
        ("ssh:me@[fe80::1%eth0]:22", ("-l", "me", "-p", "22", "--", "fe80::1%eth0")),
        ("ssh:AD\\me@10.0.0.7", ("-l", "AD\\me", "--", "10.0.0.7")),
        ("adb", ("adb", "shell", "-T")),
        ("adb:192.168.0.2:5555", ("adb", "-s", "192.168.0.2:5555", "shell", "-T")),
    ],
)
def test_addresses(name: str, end: tuple[str, ...]) -> None:
    assert target_names(name) == (name,)
    remote = find_target(name).remote
    assert remote is not None
    assert remote.opening[-len(end) :] == end


@pytest.mark.parametrize(
    "name",
    [
        *("ssh", "ssh:", "ssh:-oProxyCommand=touch pwned", "ssh:-l@pi", "ssh:me@-pi", "ssh:a b", "ssh:pi;ls"),
        *("ssh:$(ls)", "ssh:pi:0", "ssh:pi:99999", "ssh:pi:x", "ssh:pi\n", "ssh:me@", "ssh:@pi", "ssh:fe80::1"),
        *("ssh:[-x]", "adb:", "adb:-a", "adb:a b", "adb:a;b", "adb:\n"),
    ],
)
def test_addresses_that_are_none(name: str) -> None:
    with pytest.raises(TargetError, match="names no device; write"):
        find_target(name)


@pytest.mark.parametrize("interpreter", ["", "-c", "python3\nrm", "a\x00b"])
def test_interpreters_that_are_none(interpreter: str) -> None:
    with pytest.raises(TargetError, match=r"--device-python is .*; it must be the name or path of a Python"):
        find_target("ssh:pi", interpreter)


def test_tools_that_are_missing(golden: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert target_state(find_target("ssh:pi")) == "there is no ssh on this machine; install OpenSSH's client."
    with pytest.raises(
        TargetError, match="target adb cannot run: there is no adb on this machine; install the Android"
    ):
        verify_targets(golden[0], [find_target("adb")], golden[1])


# A stand-in for adb: the device is this machine, in a folder of temporary files of its own. No phone was asked.
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
TMPDIR={temporary} exec setsid --wait sh -c "$3"
"""


@pytest.fixture
def adb(bin_folder: Path, tmp_path: Path) -> Path:
    """Put the stand-in on the PATH; return the folder of temporary files of its device."""
    if shutil.which("setsid") is None:
        pytest.skip("the stand-in for adb needs setsid")
    (tmp_path / "device").mkdir()
    write_script(bin_folder / "adb", ADB.replace("{temporary}", str(tmp_path / "device")))
    return tmp_path / "device"


def test_a_device_behind_adb_computes_every_code(adb: Path, golden: tuple[Path, Path]) -> None:
    report = verify_targets(golden[0], [find_target("adb:x1", sys.executable)], golden[1])
    assert report.exact is True
    assert report.targets[0].codes is not None
    assert report.targets[0].codes.latency is not None
    assert list(adb.iterdir()) == []


def test_a_device_behind_adb_that_stops_answering(
    adb: Path, golden: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "_GRACE", 1)
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
