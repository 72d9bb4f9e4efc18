"""Set up the instruction counter, with this machine's own apt and C compiler.

Nothing is installed and nothing needs root: the package qemu-user and every library it needs, down to the loader, are
downloaded into a folder of their own, and the plugin is compiled there and tried on every emulated target that is
set up.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from qil_deploy.errors import TargetError
from qil_deploy.files import write_text
from qil_deploy.runtime_tests.targets.catalogue import (
    COUNTER,
    EMULATORS,
    TARGETS,
    Emulator,
    emulator_python,
    target_state,
    why_impossible,
)
from qil_deploy.runtime_tests.targets.install_folder import (
    ABOUT,
    check_installable,
    install,
    run_step,
    unpack_debian,
)
from qil_deploy.runtime_tests.targets.worker_process import quoted, run_worker

from .counter import PLUGIN, counted_python, counter_folder, qemu_name
from .guest import MARK
from .run import read_runs

SOURCE = Path(__file__).with_name("count.c")
_PACKAGE = "qemu-user"
_COMPILERS = ("cc", "gcc", "clang")
_COMPILE = ("-O2", "-shared", "-fPIC", "-Wall", "-Wextra")
_TOOLS = ("apt-get", "dpkg-deb")
_TRIAL_TIMEOUT = 300.0
_TRIAL = """
import contextlib, os, sys
for _ in range(2):
    with contextlib.suppress(OSError):
        os.close(int(sys.argv[1]))
"""


def set_up_counter(say: Callable[[str], None] | None = None) -> Path:
    """Set up the instruction counter; return its folder.

    Args:
        say: called with what is being done.

    Raises:
        TargetError: it is there already, this machine lacks a tool, no emulated target is set up, or a step
            failed. Nothing is left behind then.
        OutputError: the folder cannot be written.
    """
    say = say or (lambda _: None)
    emulators, compiler = _check_possible()

    def build(built: Path, scratch: Path) -> None:
        say(f"the emulators and their libraries, from the package {_PACKAGE}")
        unpack_debian([_PACKAGE], scratch / "apt", scratch / "unpacked")
        _keep_emulators(scratch / "unpacked", built)
        say("the plugin")
        run_step([compiler, *_COMPILE, "-o", str(built / PLUGIN), str(SOURCE)], "compiling the plugin")
        _describe(built)
        say("a trial")
        for emulator in emulators:
            _try(emulator, built)

    return install(counter_folder(), build)


def _check_possible() -> tuple[list[Emulator], str]:
    """Return the emulated targets that are set up, and the compiler.

    Raises:
        TargetError: something is missing, or the counter is there already.
    """
    check_installable(counter_folder(), why_impossible(EMULATORS["arm64"]), _TOOLS)
    compiler = next((name for name in _COMPILERS if shutil.which(name) is not None), None)
    if compiler is None:
        raise TargetError(
            f"setting up {COUNTER} needs a C compiler ({', '.join(_COMPILERS)}); this machine has none: apt install gcc"
        )
    ready = {target.emulator.name for target in TARGETS.values() if target.emulator and target_state(target) is None}
    if not ready:
        raise TargetError(
            f"{COUNTER} counts on emulated targets, and none is set up; first run: python -m qil_deploy target setup "
            "arm64"
        )
    return [EMULATORS[name] for name in EMULATORS if name in ready], compiler


def _keep_emulators(whole: Path, folder: Path) -> None:
    """Keep only the emulators and the libraries they need of the unpacked files."""
    (folder / "usr" / "bin").mkdir(parents=True)
    for emulator in EMULATORS.values():
        shutil.move(whole / "usr" / "bin" / qemu_name(emulator), folder / "usr" / "bin")
    for path in (*whole.glob("lib*"), *whole.glob("usr/lib*")):
        shutil.move(path, folder / path.relative_to(whole))


def _describe(folder: Path) -> None:
    """Record in the folder where loader and libraries are, at this architecture's paths.

    Raises:
        TargetError: there is no loader.
    """
    loaders = sorted(path for path in folder.rglob("ld-linux*.so.*") if path.is_file())
    libraries = sorted({path.parent for path in folder.rglob("lib*.so.*")})
    if not loaders:
        raise TargetError(f"the packages of {_PACKAGE} brought no loader; update this machine's apt.")
    about = {
        "loader": str(loaders[0].relative_to(folder)),
        "libraries": [str(path.relative_to(folder)) for path in libraries],
    }
    write_text(folder / ABOUT, json.dumps(about, indent=2) + "\n")


def _try(emulator: Emulator, folder: Path) -> None:
    """Count the instructions between two marks, on every processor to be emulated."""
    for cpu in emulator.cpus:
        marks = folder.parent / "marks"
        marks.unlink(missing_ok=True)
        command = counted_python(emulator, cpu, emulator_python(emulator), marks, folder).and_then("-c", _TRIAL, MARK)
        code, last_words = run_worker(command, folder.parent / "trial", _TRIAL_TIMEOUT)
        if code != 0:
            raise TargetError(f"the trial as {cpu} ended with {code}.{quoted(last_words)}")
        counts = read_runs(marks, Path("the trial"))
        if len(counts) != 1 or counts[0] <= 0:
            raise TargetError(f"the trial as {cpu} counted {counts}; one number of instructions was expected.")
