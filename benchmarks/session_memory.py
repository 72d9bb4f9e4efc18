"""Memory that a session takes, with the library of kernels and without.

    python benchmarks/session_memory.py runs/benchmarks/kernels/alexnet/w2a2.onnx ... [--page docs/kernels.md]

Each session has a process of its own, one thread and three runs of one image. Measured is what is resident behind them,
blocks that are free given back, and at most at any time; less what Python and ONNX Runtime took before. Linux only.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime
import typer

from qil_deploy.files import write_text
from qil_deploy.onnx_io import read_model
from qil_deploy.runtime_tests.kernel_library import INSTALLED, find_kernel_library, operators_in
from qil_deploy.runtime_tests.sessions import create_session
from qil_deploy.terminal import Console
from tables import Rows, console_table, markdown_table
from write_tables import with_tables

STATUS = Path("/proc/self/status")
NO_LIBRARY = ""
RUNS = 3
MEGABYTE = 1e6


@dataclass(frozen=True, kw_only=True)
class SessionMemory:
    """Bytes that a session takes.

    Attributes:
        resident: behind its runs.
        peak: at most, loading included.
    """

    resident: int
    peak: int

    def __str__(self) -> str:
        """Both, in megabytes."""
        return f"{self.resident / MEGABYTE:.1f} ({self.peak / MEGABYTE:.1f})"


def main(
    models: Annotated[list[Path], typer.Argument(help="ONNX files.")],
    library: Annotated[str, typer.Option(help="The library of kernels, or 'installed'.")] = INSTALLED,
    page: Annotated[Path | None, typer.Option(help="A page to write the table into, too.")] = None,
    only: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure every file without the library and, where it has operators of the library, with it."""
    if only is not None:
        json.dump(asdict(measure_here(models[0], only)), sys.stdout)
        return
    cells = []
    for model in models:
        plain = measure(model, NO_LIBRARY)
        with_kernels = str(measure(model, library)) if operators_in(read_model(model)) else ""
        size = f"{model.stat().st_size / MEGABYTE:.1f}"
        cells.append([f"{model.parent.name} {model.stem}", size, str(plain), with_kernels])
    rows = Rows(headings=("model", "file, MB", "without the library, MB", "with kernels, MB"), cells=cells)
    Console().print(console_table("Resident memory of a session (at most at any time)", rows))
    if page is not None:
        write_text(page, with_tables(page.read_text(), {"session_memory": f"\n{markdown_table(rows)}\n\n"}))


def measure(model: Path, library: str) -> SessionMemory:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, str(model), "--only", library]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - our own file
    return SessionMemory(**json.loads(finished.stdout))


def measure_here(model: Path, library: str) -> SessionMemory:
    """Measure in this process, which has created no session before."""
    kernels = find_kernel_library(library) if library else None
    before = _status("VmRSS")
    session = create_session(model, kernels=kernels)
    image = session.get_inputs()[0]
    types = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}
    shape = [size if isinstance(size, int) else 1 for size in image.shape]
    for _ in range(RUNS):
        session.run(None, {image.name: np.zeros(shape, types[image.type])})
    peak = _status("VmHWM")
    ctypes.CDLL(None).malloc_trim(0)
    resident = _status("VmRSS")
    # The kernel brings both up to date by some pages at a time, so that the peak can lag behind what is resident.
    return SessionMemory(resident=resident - before, peak=max(peak, resident) - before)


def _status(name: str) -> int:
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:")]
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    onnxruntime.set_default_logger_severity(3)
    typer.run(main)
