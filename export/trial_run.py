"""Run a file once, before it gets its name: ONNX Runtime may load what it cannot run, or refuse what the checker takes.

One image of noise passes through ONNX Runtime with all of its optimizer and without it, and through the integer
reference. Without the optimizer ONNX Runtime computes a QDQ file in float, and what a network keeps in float depends on
the kernel: there the file has to run, and nothing more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from qil_deploy.errors import CertificateError
from qil_deploy.exported_metadata import read_metadata
from qil_deploy.onnx_file import OnnxFile, loadable
from qil_deploy.reference import IntegerReference

_LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_FATAL = 4


def differing_logits(path: Path, model: OnnxFile, reference: IntegerReference | None) -> tuple[float, str]:
    """Return how many logits of a run differ from the reference's at the worst optimization level, and the level.

    Args:
        path: the file.
        model: its content.
        reference: executes it; None where only ONNX Runtime does.

    Raises:
        CertificateError: ONNX Runtime cannot load or run the file, or returns no logits.
    """
    images = _noise(model)
    found = {level: _run(path, model, images, level) for level in _LEVELS}
    if reference is None:
        return 0.0, ""
    expected = reference.run(images)
    exact = [level for level in found if level == "all" or read_metadata(model).get("format") != "qdq"]
    differing = {level: _differing(found[level], expected) for level in exact}
    worst = max(exact, key=lambda level: differing[level])
    return float(differing[worst]), f"ONNX Runtime at optimization level {worst!r}"


def _differing(found: NDArray[Any], expected: NDArray[Any]) -> int:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return expected.size
    return int(np.count_nonzero(found != expected))  # NaN differs from everything, itself included


def _noise(model: OnnxFile) -> NDArray[Any]:
    """Return random pixels, as the file's input wants them, as many images as one run of it takes."""
    image = model.inputs[0]
    shape = [size if isinstance(size, int) else 1 for size in image.shape or ()]
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    if image.dtype == "uint8":
        return pixels
    grid = read_metadata(model).get("preprocessing", {"scale": 1 / 64, "zero_point": 128})
    return (pixels.astype(np.float32) - np.float32(grid["zero_point"])) * np.float32(grid["scale"])


def _run(path: Path, model: OnnxFile, images: NDArray[Any], level: str) -> NDArray[Any]:
    """Return the logits."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = _LEVELS[level]
    options.intra_op_num_threads = 1
    options.log_severity_level = _FATAL
    options.enable_cpu_mem_arena = False  # one run: what it needs is given back at once
    try:
        # Without the fallback, which prints to the screen and tries the same again.
        session = onnxruntime.InferenceSession(
            loadable(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        (logits,) = session.run([model.outputs[0].name], {model.inputs[0].name: images})
    except Exception as error:  # ONNX Runtime's errors share no base class below Exception
        reason = " ".join(str(error).split()).rstrip(".")
        raise CertificateError(
            f"certificate line 'runs' fails: ONNX Runtime {onnxruntime.__version__} cannot run the file at optimization "
            f"level {level!r}: {reason}."
        ) from error
    return np.asarray(logits)
