"""Set up a target's folder, whole or not at all, with this machine's own apt and pip, configured as they are.

Nothing is installed and nothing needs root: apt works in a state folder of its own, which may be of another
architecture, and packages are unpacked where they are needed. The folder is built beside its place, tried, and renamed.

onnxruntime and numpy are of versions that were tried: newer onnxruntime (1.29, 1.32) crashes when imported under qemu
7.2.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from qil_deploy.errors import TargetError
from qil_deploy.files import ensure_writable, write_text

from .catalogue import ABOUT, COUNTER, EMULATORS, TARGETS, Emulator, this_python, why_impossible
from .remote import is_remote
from .run import emulated_python
from .worker_process import run_worker

PACKAGES = ("onnxruntime==1.24.1", "numpy==2.4.6")
SYSTEM_PACKAGES = ("python3", "libstdc++6", "libgomp1")
_TOOLS = ("apt-get", "dpkg-deb", "tar")
_WHEEL_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux2014")
_COMMAND_TIMEOUT = 1800.0
_TRIAL_TIMEOUT = 300.0
_TRIAL = "import numpy, onnxruntime; print(onnxruntime.__version__)"


def set_up_target(name: str, say: Callable[[str], None] | None = None) -> Path:
    """Set up a target; return its folder.

    Args:
        name: "haswell", "arm64" (with all of its processors), "wasm", or "instructions", which counts those that
            emulated processors execute.
        say: called with what is being done.

    Raises:
        TargetError: there is nothing of this name to set up, it is there already, this machine cannot run it, or a step
            failed. Nothing is left behind then.
        OutputError: the folder cannot be written.
    """
    say = say or (lambda _: None)
    if is_remote(name):
        raise TargetError(
            f"there is nothing to set up here for {name}; the device needs Python 3.10 or newer, and there: "
            "python3 -m pip install numpy onnxruntime"
        )
    emulator = EMULATORS.get(name.partition(":")[0])
    browsers = [target.name for target in TARGETS.values() if target.browser]
    if name == COUNTER:
        from qil_deploy.runtime_tests.instructions import set_up_counter

        return set_up_counter(say)
    if name in browsers:
        from qil_deploy.runtime_tests.browser import set_up_browser

        return set_up_browser(say)
    if emulator is None:
        known = ", ".join([*EMULATORS, *browsers, COUNTER])
        raise TargetError(f"there is nothing to set up for {name!r}; choose from {known}.")
    _check_possible(emulator)
    folder = emulator.folder
    ensure_writable(folder.parent / ABOUT)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{emulator.name}-", dir=folder.parent) as scratch:
            _build(emulator, Path(scratch), say).rename(folder)
    except OSError as error:
        raise TargetError(f"setting up {emulator.name} failed: {error}.") from error
    return folder


def _build(emulator: Emulator, scratch: Path, say: Callable[[str], None]) -> Path:
    """Build and try a target's folder; return it."""
    built, state = scratch / "built", scratch / "apt"
    built.mkdir()
    say("the emulator, from the package qemu-user-static")
    _unpack_emulator(emulator, state / "host", built)
    python = this_python()
    if emulator.system is not None:
        say(f"Python and its libraries for {emulator.system}")
        python = _unpack_system(emulator.system, state / "guest", built)
    say(" and ".join(PACKAGES))
    _install_wheels(emulator, python, built / "packages")
    say("a trial")
    _try(emulator, built, built / python)
    write_text(built / ABOUT, json.dumps({"python": str(python), "packages": PACKAGES}, indent=2) + "\n")
    return built


def _check_possible(emulator: Emulator) -> None:
    if emulator.folder.exists():
        raise TargetError(
            f"{emulator.name} is set up already, in {emulator.folder}; remove that folder to set it up anew."
        )
    unable = why_impossible(emulator)
    if unable is not None:
        raise TargetError(f"{emulator.name} cannot be set up here: {unable}")
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        raise TargetError(
            f"setting up {emulator.name} needs {', '.join(missing)}, of Debian and the distributions made from it; "
            "this machine has none."
        )


def _unpack_emulator(emulator: Emulator, state: Path, folder: Path) -> None:
    apt = apt_get(state, None)
    run_step([*apt, "update"], "updating the package lists")
    run_step([*apt, "download", "qemu-user-static"], "downloading qemu-user-static", cwd=state)
    for package in state.glob("qemu-user-static_*.deb"):
        run_step(["dpkg-deb", "-x", str(package), str(state / "unpacked")], "unpacking qemu-user-static")
    shutil.copy(state / "unpacked" / "usr" / "bin" / emulator.qemu, folder / emulator.qemu)
    shutil.rmtree(state)


def _unpack_system(architecture: str, state: Path, folder: Path) -> Path:
    """Unpack Python and what it needs of another architecture; return its Python, relative to `folder`."""
    apt = apt_get(state, architecture)
    run_step([*apt, "update"], f"updating the package lists for {architecture}")
    wanted = ["--yes", "--no-install-recommends", "--download-only", "install", *SYSTEM_PACKAGES]
    run_step([*apt, *wanted], f"downloading Python for {architecture}")
    (folder / "system").mkdir()
    for package in sorted((state / "archives").glob("*.deb")):
        run_step(["dpkg-deb", "-x", str(package), str(folder / "system")], f"unpacking {package.name}")
    shutil.rmtree(state)
    python = (folder / "system" / "usr" / "bin" / "python3").resolve()
    if re.fullmatch(r"python3\.\d+", python.name) is None or not python.is_file():
        raise TargetError(
            f"the {architecture} packages brought {python.name}, not a Python 3; update this machine's apt."
        )
    return python.relative_to(folder.resolve())


def apt_get(state: Path, architecture: str | None) -> list[str]:
    """Return an apt-get that keeps its lists, its idea of what is installed and its downloads in `state`."""
    for folder in ("lists/partial", "archives/partial"):
        (state / folder).mkdir(parents=True)
    (state / "status").touch()
    settings = {
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "Dir::Cache::archives": state / "archives",
        "APT::Sandbox::User": "root",
        "Debug::NoLocking": "true",
    }
    if architecture is not None:
        settings |= {"APT::Architecture": architecture, "APT::Architectures": architecture}
    return ["apt-get", "-qq", *(part for key, value in settings.items() for part in ("-o", f"{key}={value}"))]


def _install_wheels(emulator: Emulator, python: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--only-binary=:all:"]
    command += ["--progress-bar", "off", "--disable-pip-version-check", "--root-user-action", "ignore"]
    command += ["--target", str(folder)]
    if emulator.system is not None:
        for platform in _WHEEL_PLATFORMS:
            command += ["--platform", f"{platform}_{emulator.architecture}"]
        command += ["--implementation", "cp", "--python-version", python.name.removeprefix("python")]
    run_step([*command, *PACKAGES], f"installing {' and '.join(PACKAGES)} for {emulator.architecture}")


def _try(emulator: Emulator, folder: Path, python: Path) -> None:
    """Import onnxruntime on every processor that the emulator is to play."""
    for cpu in emulator.cpus:
        command = emulated_python(emulator, cpu, folder, python).and_then("-c", _TRIAL)
        code, last_words = run_worker(command, folder.parent / "trial", _TRIAL_TIMEOUT)
        if code != 0:
            what = f"did not answer within {_TRIAL_TIMEOUT:g} seconds" if code is None else f"ended with {code}"
            raise TargetError(f"onnxruntime {what} as {cpu}: {' / '.join(last_words) or 'no message'}.")


def run_step(command: Sequence[str], what: str, cwd: Path | None = None) -> None:
    """Run a command of this machine.

    Raises:
        TargetError: it fails; says its last words.
    """
    try:
        done = subprocess.run(  # noqa: S603 - apt, dpkg and pip of this machine, without a shell
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMMAND_TIMEOUT,
            check=False,
            cwd=cwd,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TargetError(f"{what} failed: {error}.") from error
    if done.returncode != 0:
        last = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise TargetError(f"{what} failed with exit code {done.returncode}: {last or 'no message'}.")
