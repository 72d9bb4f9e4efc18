"""Devices reached by ssh or adb: their addresses, and the commands that start a program there."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import dataclass

from qil_deploy.errors import TargetError

DEFAULT_PYTHON = "python3"
CONNECT_SECONDS = 10

# Nothing is asked for, nothing is forwarded, and a connection that died is noticed. A master connection that stays in
# the background would keep the standard error open.
_SSH = (
    *("ssh", "-T", "-x", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}"),
    *("-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3", "-o", "ClearAllForwardings=yes"),
    *("-o", "ForwardAgent=no", "-o", "RemoteCommand=none", "-o", "ControlMaster=no", "-o", "LogLevel=ERROR"),
)
_SSH_ADDRESS = re.compile(
    r"(?:(?P<user>[\w.+$\\][\w.+$\\-]*)@)?(?P<host>[\w.][\w.-]*|\[[0-9a-fA-F:.]+(?:%\w+)?\])(?::(?P<port>[0-9]{1,5}))?",
    re.ASCII,
)
_ADB_SERIAL = re.compile(r"[\w.\[][\w.:\[\]-]*", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A device.

    Attributes:
        tool: the program that reaches it, "ssh" or "adb".
        opening: the command line of that program up to what is to be started there.
        python: the interpreter there.
    """

    tool: str
    opening: tuple[str, ...]
    python: str = DEFAULT_PYTHON

    def command(self, script: str) -> tuple[str, ...]:
        """Return the command that runs a POSIX shell script there, whatever the user's own shell is."""
        return (*self.opening, f"exec sh -c {shlex.quote(script)}")

    @property
    def python_word(self) -> str:
        """The interpreter in the syntax of a shell there; `~/` is the user's home there."""
        if self.python.startswith("~/"):
            return f'"$HOME"/{shlex.quote(self.python[2:])}'
        return shlex.quote(self.python)


# How devices are named, each with an example.
DEVICE_FORMS = {"ssh:USER@HOST:PORT": "ssh:localhost", "adb:SERIAL": "adb"}


def is_remote(name: str) -> bool:
    """Tell whether a target's name is that of a device."""
    return name.partition(":")[0] in ("ssh", "adb")


def find_remote(name: str, python: str = DEFAULT_PYTHON) -> Remote:
    """Return the device with a name: `ssh:[USER@]HOST[:PORT]` (or an alias of the ssh configuration), `adb[:SERIAL]`.

    Raises:
        TargetError: the name or the interpreter's is none.
    """
    if not python or python.startswith("-") or not python.isprintable():
        raise TargetError(f"--device-python is {python!r}; it must be the name or path of a Python on the device.")
    tool, colon, address = name.partition(":")
    if tool == "adb":
        if colon and not _ADB_SERIAL.fullmatch(address):
            raise TargetError(f"{name!r} names no device; write adb, or adb:SERIAL (adb devices lists them).")
        chosen = ("-s", address) if colon else ()
        return Remote(tool=tool, opening=("adb", *chosen, "shell", "-T"), python=python)
    match = _SSH_ADDRESS.fullmatch(address)
    port = None if match is None else match["port"]
    if match is None or not 0 < int(port or 22) < 1 << 16:
        raise TargetError(f"{name!r} names no device; write ssh:HOST, ssh:USER@HOST or ssh:USER@HOST:PORT.")
    user = ("-l", match["user"]) if match["user"] else ()
    return Remote(
        tool=tool,
        opening=(*_SSH, *user, *(("-p", port) if port else ()), "--", match["host"].strip("[]")),
        python=python,
    )


def remote_state(remote: Remote) -> str | None:
    """Return None if this machine could reach a device, else the reason; the device itself is not asked."""
    if shutil.which(remote.tool) is not None:
        return None
    package = {"ssh": "OpenSSH's client", "adb": "the Android platform tools"}[remote.tool]
    return f"there is no {remote.tool} on this machine; install {package}."
