"""Measure the memory of a session, with and without the kernel library.

    python benchmarks/session_memory.py runs/benchmarks/kernels/alexnet/w2a2.onnx ... [--page docs/kernels.md]

Each session runs in a separate process, with one thread and three runs of one image. The script measures the resident
memory after the runs, once free blocks have been returned, and the peak; both minus the memory that Python and ONNX
Runtime took before. Linux only.
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
    """Memory of a session, in bytes.

    Attributes:
        resident: resident memory after its runs.
        peak: peak memory, including loading.
    """

    resident: int
    peak: int

    def __str__(self) -> str:
        """Return both figures in megabytes."""
        return f"{self.resident / MEGABYTE:.1f} ({self.peak / MEGABYTE:.1f})"


def main(
    models: Annotated[list[Path], typer.Argument(help="ONNX files.")],
    library: Annotated[str, typer.Option(help="The library of kernels, or 'installed'.")] = INSTALLED,
    page: Annotated[Path | None, typer.Option(help="A page into which the table is also written.")] = None,
    only: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure every file without the library and, if it has operators of the library, with it."""
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
    """Measure in a separate process."""
    command = [sys.executable, __file__, str(model), "--only", library]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - our own file
    return SessionMemory(**json.loads(finished.stdout))


def measure_here(model: Path, library: str) -> SessionMemory:
    """Measure in this process, which must not have created a session before."""
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
    # The kernel updates both in batches of pages, so the reported peak can be below the resident memory.
    return SessionMemory(resident=resident - before, peak=max(peak, resident) - before)


def _status(name: str) -> int:
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:")]
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    onnxruntime.set_default_logger_severity(3)
    typer.run(main)
