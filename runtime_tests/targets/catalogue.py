"""The targets: their names, the folders that they need, and whether they can run here.

An emulated target is a folder, set up as a whole by `setup.py`:

    EMULATOR/qemu-ARCH-static   from the Debian package qemu-user-static
    EMULATOR/packages/          numpy and onnxruntime for that instruction set
    EMULATOR/system/            libraries and Python of that instruction set, where it is not this machine's
    EMULATOR/about.json         written last: {"python": path, relative to the folder or absolute}
"""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from qil_deploy.errors import TargetError

from .install_folder import folder_state, read_about, targets_folder
from .remote import DEFAULT_PYTHON, Remote, find_remote, is_remote, remote_state

COUNTER = "instructions"  # no target: counts the instructions of emulated ones


@dataclass(frozen=True, kw_only=True)
class Emulator:
    """An instruction set that qemu-user emulates.

    Attributes:
        name: of the folder, and what `target setup` calls it.
        architecture: qemu's name of it.
        system: Debian's name of it where Python comes from there; None where this machine's Python runs.
        cpus: the processors to emulate, by qemu's names.
    """

    name: str
    architecture: str
    system: str | None
    cpus: tuple[str, ...]

    @property
    def qemu(self) -> str:
        """The emulator's file name."""
        return f"qemu-{self.architecture}-static"

    @property
    def folder(self) -> Path:
        """The folder of the emulator."""
        return targets_folder() / self.name


@dataclass(frozen=True, kw_only=True)
class Target:
    """A machine that can run a model: this one, unless it has one of emulator, browser and remote.

    Attributes:
        name: as on the command line.
        about: what it shows, in a few words.
        emulator, cpu: what emulates it, and as which processor.
        browser: whether a browser runs it.
        remote: the device that runs it.
    """

    name: str
    about: str
    emulator: Emulator | None = None
    cpu: str | None = None
    browser: bool = False
    remote: Remote | None = None


HASWELL = Emulator(name="haswell", architecture="x86_64", system=None, cpus=("Haswell",))
ARM64 = Emulator(
    name="arm64", architecture="aarch64", system="arm64", cpus=("cortex-a53", "cortex-a72", "cortex-a76", "max")
)
EMULATORS = {emulator.name: emulator for emulator in (HASWELL, ARM64)}
_ARM64_ABOUT = {
    "cortex-a53": "arm64 without dot product, in order",
    "cortex-a72": "arm64 without dot product",
    "cortex-a76": "arm64 with dot product",
    "max": "arm64 with all that qemu knows",
}
TARGETS = {
    target.name: target
    for target in (
        Target(name="native", about="this machine"),
        Target(name="haswell", about="x86-64 with AVX2, without VNNI", emulator=HASWELL, cpu="Haswell"),
        *(Target(name=f"arm64:{cpu}", about=about, emulator=ARM64, cpu=cpu) for cpu, about in _ARM64_ABOUT.items()),
        Target(name="wasm", about="ONNX Runtime Web in headless Chromium", browser=True),
    )
}


def target_names(text: str) -> tuple[str, ...]:
    """Return the targets of a name: itself, every `arm64:CPU` for `arm64`, or all but devices for `all`.

    Raises:
        TargetError: there is no such target.
    """
    if is_remote(text):
        return (text,)
    names = tuple(name for name in TARGETS if text in ("all", name, name.partition(":")[0]))
    if not names:
        raise TargetError(
            f"there is no target {text!r}; choose from all, arm64, {', '.join(TARGETS)}, ssh:HOST, adb[:SERIAL]."
        )
    return names


def find_target(name: str, device_python: str = DEFAULT_PYTHON) -> Target:
    """Return one target by its whole name.

    Args:
        name: of the catalogue; or a device, `ssh:[USER@]HOST[:PORT]` or `adb[:SERIAL]`.
        device_python: the interpreter of a device.

    Raises:
        TargetError: there is no such target.
    """
    if is_remote(name):
        remote = find_remote(name, device_python)
        return Target(name=name, about=f"a device, reached by {remote.tool}", remote=remote)
    if name not in TARGETS:
        raise TargetError(f"there is no target {name!r}; choose from {', '.join(TARGETS)}, ssh:HOST, adb[:SERIAL].")
    return TARGETS[name]


def target_state(target: Target) -> str | None:
    """Return None if a target can run, else the reason, as a sentence."""
    if target.browser:
        from qil_deploy.runtime_tests.browser import browser_state

        return browser_state()
    if target.remote is not None:
        return remote_state(target.remote)
    if target.emulator is not None:
        return why_impossible(target.emulator) or _why_not_ready(target.emulator)
    return None


def _why_not_ready(emulator: Emulator) -> str | None:
    """Return the defect of an emulator's folder, or None."""
    folder = emulator.folder
    state = folder_state(folder, lambda: (folder / emulator.qemu, emulator_python(emulator)))
    if state is None and emulator.system is None and emulator_python(emulator) != this_python():
        return (
            f"it is set up for {emulator_python(emulator)}, and this is {this_python()}; remove {folder} and set it up "
            "again."
        )
    return state


def why_impossible(emulator: Emulator) -> str | None:
    """Return why this machine can never run a target, or None."""
    if not sys.platform.startswith("linux"):
        return f"qemu-user runs on Linux, and this is {sys.platform}."
    if emulator.system is None and platform.machine() != emulator.architecture:
        return f"it needs an {emulator.architecture} machine, and this is {platform.machine()}."
    return None


def emulator_python(emulator: Emulator) -> Path:
    """Return the Python for an emulator, which may have been removed since.

    Raises:
        OSError, ValueError, KeyError, TypeError: what its folder says about it is damaged.
    """
    return emulator.folder / str(read_about(emulator.folder)["python"])


def this_python() -> Path:
    """Return this machine's interpreter, outside of any virtual environment."""
    return Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
