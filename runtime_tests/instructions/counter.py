"""The emulator that counts: its location, whether it can run, and how to start Python in it.

Debian's static qemu cannot load plugins, so that the counter has the dynamic one of the same version, with the
libraries and the loader it was built for; this machine's own do not matter:

    instructions/lib...         libraries and their loader, as in the packages
    instructions/usr/bin/       qemu-aarch64 and qemu-x86_64
    instructions/count.so       `count.c`, compiled
    instructions/about.json     written last: {"loader": path, "libraries": [paths]}, relative to the folder
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qil_deploy.runtime_tests.targets.catalogue import COUNTER, Emulator
from qil_deploy.runtime_tests.targets.install_folder import folder_state, read_about, targets_folder
from qil_deploy.runtime_tests.targets.run import emulated_python
from qil_deploy.runtime_tests.targets.worker_process import Command

PLUGIN = "count.so"


def counter_folder() -> Path:
    """Return the folder of the counter."""
    return targets_folder() / COUNTER


def counter_state() -> str | None:
    """Return None if the counter can run, else the reason, as a sentence."""
    folder = counter_folder()

    def needed() -> Iterator[Path]:
        loader, libraries = read_loader(folder)
        yield from (folder / PLUGIN, loader, *libraries)

    return folder_state(folder, needed)


def read_loader(folder: Path) -> tuple[Path, tuple[Path, ...]]:
    """Return the loader in a counter's folder, and its library path.

    Raises:
        OSError, ValueError, KeyError, TypeError: the folder's record of it is damaged.
    """
    about = read_about(folder)
    return folder / str(about["loader"]), tuple(folder / str(path) for path in about["libraries"])


def qemu_name(emulator: Emulator) -> str:
    """Return the file name of an emulator's dynamic qemu."""
    return f"qemu-{emulator.architecture}"


def counted_python(emulator: Emulator, cpu: str, python: Path, counts: Path, folder: Path) -> Command:
    """Return the command that starts Python in the emulator that counts.

    Args:
        emulator: the instruction set, set up.
        cpu: the processor, by qemu's name.
        python: the interpreter that it runs.
        counts: the file that the plugin is to write.
        folder: of the counter.
    """
    plain = emulated_python(emulator, cpu, emulator.folder, python)
    # One thread, or additions would be lost; and dictionaries of one order, or counts would differ more.
    environment = {**plain.environment, "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    return Command(arguments=(*counting_qemu(emulator, counts, folder), *plain.arguments[1:]), environment=environment)


def counting_qemu(emulator: Emulator, counts: Path, folder: Path) -> tuple[str, ...]:
    """Return the command that starts the emulator that counts, without its other options."""
    loader, libraries = read_loader(folder)
    plugin = f"{_escaped(folder / PLUGIN)},counts={_escaped(counts)}"
    qemu = folder / "usr" / "bin" / qemu_name(emulator)
    return (str(loader), "--library-path", ":".join(map(str, libraries)), str(qemu), "-plugin", plugin)


def _escaped(path: Path) -> str:
    """Escape a path for qemu, in which a comma ends it and two commas are one."""
    return str(path).replace(",", ",,")
