"""Whether a target can load a library of kernels: only a native target with the processor it was built for."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Final

from .catalogue import Target

_ELF: Final = b"\x7fELF"
_MACHINE: Final = slice(18, 20)  # in the header of an ELF file, little-endian as all of these machines are
_ARCHITECTURES: Final = {62: "x86_64", 183: "aarch64"}


def why_no_kernels(target: Target, library: Path) -> str | None:
    """Return None if a target can load a library as far as is known here, else the reason, as a sentence."""
    if target.browser:
        return "browsers load no native libraries; leave --kernels out: the same file runs there without."
    built, runs = _architecture_of(library), _architecture_at(target)
    if built is None or runs is None or built == runs:
        return None
    return (
        f"the kernel library {library} is built for {built}, and it runs {runs}; name one that is built for that "
        "(CONTRIBUTING.md says how)."
    )


def _architecture_of(library: Path) -> str | None:
    """Return the architecture of a library; None if it is not stated in Linux's format."""
    with library.open("rb") as file:
        header = file.read(_MACHINE.stop)
    if not header.startswith(_ELF):
        return None
    return _ARCHITECTURES.get(int.from_bytes(header[_MACHINE], "little"))


def _architecture_at(target: Target) -> str | None:
    """Return the architecture of a target; None for a device, which has not been asked."""
    if target.remote is not None:
        return None
    return platform.machine() if target.emulator is None else target.emulator.architecture
