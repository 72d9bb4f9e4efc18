"""Set up a target's folder with this machine's own apt and pip, as configured.

Nothing is installed and nothing needs root: apt works in a state folder of its own, which may be of another
architecture, and packages are unpacked where they are needed.

onnxruntime and numpy are of versions that were tried: newer onnxruntime (1.29, 1.32) crashes when imported under qemu
7.2.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from qil_deploy.errors import TargetError
from qil_deploy.files import write_text

from .catalogue import COUNTER, EMULATORS, TARGETS, Emulator, this_python, why_impossible
from .install_folder import ABOUT, check_installable, install, run_step, unpack_debian
from .remote import is_remote
from .run import emulated_python
from .worker_process import run_worker

PACKAGES = ("onnxruntime==1.24.1", "numpy==2.4.6")
SYSTEM_PACKAGES = ("python3", "libstdc++6", "libgomp1")
_TOOLS = ("apt-get", "dpkg-deb", "tar")
_WHEEL_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux2014")
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
    check_installable(emulator.folder, why_impossible(emulator), _TOOLS)
    return install(emulator.folder, lambda built, scratch: _build(emulator, built, scratch, say))


def _build(emulator: Emulator, built: Path, scratch: Path, say: Callable[[str], None]) -> None:
    """Fill a target's folder, and try it."""
    say("the emulator, from the package qemu-user-static")
    unpack_debian(["qemu-user-static"], scratch / "host", scratch / "qemu", dependencies=False)
    shutil.copy(scratch / "qemu" / "usr" / "bin" / emulator.qemu, built / emulator.qemu)
    python = this_python()
    if emulator.system is not None:
        say(f"Python and its libraries for {emulator.system}")
        unpack_debian(SYSTEM_PACKAGES, scratch / "guest", built / "system", architecture=emulator.system)
        python = _find_python(built, emulator.system)
    say(" and ".join(PACKAGES))
    _install_wheels(emulator, python, built / "packages")
    say("a trial")
    _try(emulator, built, built / python)
    write_text(built / ABOUT, json.dumps({"python": str(python), "packages": PACKAGES}, indent=2) + "\n")


def _find_python(folder: Path, architecture: str) -> Path:
    """Return the unpacked Python of another architecture, relative to `folder`."""
    python = (folder / "system" / "usr" / "bin" / "python3").resolve()
    if re.fullmatch(r"python3\.\d+", python.name) is None or not python.is_file():
        raise TargetError(
            f"the {architecture} packages brought {python.name}, not a Python 3; update this machine's apt."
        )
    return python.relative_to(folder.resolve())


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
    """Import onnxruntime on every processor to be emulated."""
    for cpu in emulator.cpus:
        command = emulated_python(emulator, cpu, folder, python).and_then("-c", _TRIAL)
        code, last_words = run_worker(command, folder.parent / "trial", _TRIAL_TIMEOUT)
        if code != 0:
            what = f"did not answer within {_TRIAL_TIMEOUT:g} seconds" if code is None else f"ended with {code}"
            raise TargetError(f"onnxruntime {what} as {cpu}: {' / '.join(last_words) or 'no message'}.")
