"""Compare files with and without the library of kernels, in an emulated Python with only numpy and onnxruntime.

    python guest.py PACKAGE FOLDER > report.json

PACKAGE holds `qil_deploy_kernels`; FOLDER holds `0.onnx` and its input `0.npy`, `1.onnx`, ... The report has what the
library explains of the processor, and for each file the library's lines about its layers and how many bytes of the
output differ.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def main(package: str, folder: Path) -> None:
    """Write the report to standard output."""
    sys.path.insert(0, package)
    from qil_deploy_kernels import explain, layers, library_path

    lines, differing = [], []
    for number in range(len(list(folder.glob("*.onnx")))):
        model = folder / f"{number}.onnx"
        x = np.load(model.with_suffix(".npy"))
        expected = session(model, None).run(None, {"x": x})[0]
        ours = session(model, library_path())
        lines.append(layers())
        found = ours.run(None, {"x": x})[0]
        differing.append(int((found != expected).sum()) if found.shape == expected.shape else found.size)
    json.dump({"explain": explain(), "layers": lines, "differing": differing}, sys.stdout)


def session(model: Path, library: Path | None) -> onnxruntime.InferenceSession:
    """Return a session of a file, with the library or (None) without."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    if library is not None:
        options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
