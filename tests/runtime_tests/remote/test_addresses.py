"""Names of devices, and of the Python there."""

from __future__ import annotations

from pathlib import Path

import pytest

from qil_deploy.errors import TargetError
from qil_deploy.runtime_tests.targets import find_target, target_names, target_state, verify_targets


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
