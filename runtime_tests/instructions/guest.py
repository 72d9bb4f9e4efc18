"""Run a model in an emulator that counts instructions (`count.c`), and mark the begin and end of each counted run.

    python guest.py PROGRAM.pyz MODEL.onnx INPUTS.npz WARMUP REPEATS CPU [KERNELS.so] > guest.json

With a library of kernels, the session registers it. The inputs are named "0", "1", ... in the order of the model's.
Progress goes to standard error. Needs numpy and onnxruntime, and of this project what is in the zip file
(`device_program`).
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

MARK = 0x51494C  # a descriptor that no file has; as in count.c


def main(arguments: list[str]) -> int:
    """Run the model and write the report; return the exit code."""
    program, model, data, warmup, repeats, cpu, *kernels = arguments
    sys.path.insert(0, program)
    from qil_deploy.reports import report_text
    from qil_deploy.runtime_tests.device_report import GuestReport
    from qil_deploy.runtime_tests.environment import describe_device
    from qil_deploy.runtime_tests.kernel_library import KernelLibrary
    from qil_deploy.runtime_tests.sessions import create_session

    progress("loading", 0, int(repeats))
    try:
        library = KernelLibrary(path=Path(kernels[0])) if kernels else None
        session = create_session(Path(model), kernels=library)
        with np.load(data, allow_pickle=False) as arrays:
            inputs = {tensor.name: arrays[str(index)] for index, tensor in enumerate(session.get_inputs())}
        progress("loaded", 0, int(repeats))
        run_marked(session, inputs, int(warmup), int(repeats))
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class below Exception
        sys.stderr.write(f"ONNX Runtime {onnxruntime.__version__}: {' '.join(str(error).split())}\n")
        return 2
    sys.stdout.write(report_text(GuestReport(schema=GuestReport.SCHEMA, environment=describe_device(cpu)), indent=None))
    return 0


def run_marked(
    session: onnxruntime.InferenceSession, inputs: dict[str, NDArray[Any]], warmup: int, repeats: int
) -> None:
    """Run a session, with a mark before and after each counted run."""
    gc.disable()  # or it would be counted in some runs and not in others
    for _ in range(warmup):
        session.run(None, inputs)
        progress("warm-up", 0, repeats)
    for done in range(repeats):
        mark()
        session.run(None, inputs)
        mark()
        progress("counting", done + 1, repeats)


def mark() -> None:
    """Make the plugin record the count so far."""
    with contextlib.suppress(OSError):
        os.close(MARK)


def progress(what: str, done: int, total: int) -> None:
    """Report progress to the waiting process."""
    sys.stderr.write(f"progress: {what}: {done} of {total} runs\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
