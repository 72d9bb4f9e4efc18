"""Compare files with and without the library of kernels, in an emulated Python that has numpy and onnxruntime alone.

    python guest.py LIBRARY FOLDER > report.json

FOLDER holds `0.onnx` and its input `0.npy`, `1.onnx`, ... The report has what the library explains of the processor, and
for each file the line of the library about its layer and how many bytes of the output differ.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def main(library: str, folder: Path) -> None:
    kernels = ctypes.CDLL(library)
    kernels.qil_deploy_kernels_explain.restype = kernels.qil_deploy_kernels_layers.restype = ctypes.c_char_p
    report = {"explain": kernels.qil_deploy_kernels_explain().decode(), "layers": [], "differing": []}
    for number in range(len(list(folder.glob("*.onnx")))):
        model = folder / f"{number}.onnx"
        x = np.load(model.with_suffix(".npy"))
        expected = session(model, None).run(None, {"x": x})[0]
        ours = session(model, library)
        report["layers"].append(kernels.qil_deploy_kernels_layers().decode().strip())
        found = ours.run(None, {"x": x})[0]
        report["differing"].append(int((found != expected).sum()) if found.shape == expected.shape else found.size)
    json.dump(report, sys.stdout)


def session(model: Path, library: str | None) -> onnxruntime.InferenceSession:
    """Return a session of a file, with the library or (None) without."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    if library is not None:
        options.register_custom_ops_library(library)
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
