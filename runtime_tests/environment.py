"""Environment of a run or measurement: versions and the processor."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from .device_report import DeviceEnvironment
from .machine import CPUINFO, cpuinfo_entry, read_text, usable_cpus

BOARD = Path("/proc/device-tree/model")


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
        cpu=cpu_name(),
        cpus=len(usable_cpus()) or os.cpu_count() or 1,
    )


def describe_device(cpu: str | None = None) -> DeviceEnvironment:
    """Describe this machine as a target; `cpu` names the processor that an emulator emulates."""
    here = describe_environment()
    return DeviceEnvironment(
        onnxruntime=here.onnxruntime,
        numpy=here.numpy,
        python=here.python,
        browser=None,
        machine=here.machine,
        cpu=cpu or here.cpu,
        cpus=here.cpus,
        features=_cpu_features(),
    )


def cpu_name(cpuinfo: Path = CPUINFO, board: Path = BOARD) -> str:
    """Return the processor's name, else that of its board, else its instruction set."""
    # x86 says "model name"; older arm kernels say "Hardware".
    named = cpuinfo_entry(("model name", "Hardware"), cpuinfo)
    return named or read_text(board).strip("\0 \n") or platform.processor() or platform.machine() or "unknown"


def _cpu_features() -> tuple[str, ...]:
    """Return the instruction set extensions that numpy finds when it asks the processor, emulated ones included."""
    core = sys.modules.get("numpy._core._multiarray_umath") or sys.modules.get("numpy.core._multiarray_umath")
    return tuple(sorted(name for name, present in getattr(core, "__cpu_features__", {}).items() if present))
