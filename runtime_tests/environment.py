"""Where a measurement was made: versions and the processor."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Software and processor of one report.

    Attributes:
        onnxruntime, numpy, python: versions.
        machine: instruction set, for example "x86_64".
        cpu: the processor's own name, or what the system says when it has none.
        cpus: how many logical processors this process may use.
    """

    onnxruntime: str
    numpy: str
    python: str
    machine: str
    cpu: str
    cpus: int


def describe_environment() -> Environment:
    """Describe the machine this process runs on."""
    return Environment(
        onnxruntime=onnxruntime.__version__,
        numpy=np.__version__,
        python=platform.python_version(),
        machine=platform.machine(),
        cpu=cpu_name(CPUINFO),
        cpus=_usable_cpus(),
    )


def cpu_name(cpuinfo: Path) -> str:
    """Return the processor's name from a file like `/proc/cpuinfo`, else what Python knows of it."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        # x86 says "model name"; older arm kernels say "Hardware".
        if key.strip() in ("model name", "Hardware") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
