"""Run a model in an emulator that counts instructions (`count.c`), and mark where each counted run begins and ends.

    python guest.py MODEL.onnx INPUTS.npz WARMUP REPEATS CPU > guest.json

The inputs are named "0", "1", ... in the order of the model's. Progress goes to standard error. Needs numpy and
onnxruntime, and nothing of this project but `device_runner.py`, which it reads as a file.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

SCHEMA = "qil_deploy.guest/1"
MARK = 0x51494C  # a descriptor that no file has; as in count.c
_RUNNER = Path(__file__).parents[1] / "device_runner.py"
_FATAL = 4


def main(arguments: list[str]) -> int:
    """Run the model and write the report; return the exit code."""
    model, data, warmup, repeats, cpu = arguments
    progress("loading", 0, int(repeats))
    try:
        session = load(model)
        with np.load(data, allow_pickle=False) as arrays:
            inputs = {tensor.name: arrays[str(index)] for index, tensor in enumerate(session.get_inputs())}
        progress("loaded", 0, int(repeats))
        run_marked(session, inputs, int(warmup), int(repeats))
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class below Exception
        sys.stderr.write(f"ONNX Runtime {onnxruntime.__version__}: {' '.join(str(error).split())}\n")
        return 2
    environment = runpy.run_path(str(_RUNNER))["describe_environment"](cpu)
    sys.stdout.write(json.dumps({"schema": SCHEMA, "environment": environment}) + "\n")
    return 0


def load(model: str) -> onnxruntime.InferenceSession:
    """Load a model for one thread, at the default optimization level."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_marked(
    session: onnxruntime.InferenceSession, inputs: dict[str, NDArray[Any]], warmup: int, repeats: int
) -> None:
    """Run a session, with a mark before and after each run that counts."""
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
    """Have the plugin write down what was executed until now."""
    with contextlib.suppress(OSError):
        os.close(MARK)


def progress(what: str, done: int, total: int) -> None:
    """Tell whoever waits that work goes on."""
    sys.stderr.write(f"progress: {what}: {done} of {total} runs\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
