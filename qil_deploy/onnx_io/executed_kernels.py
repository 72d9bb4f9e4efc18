"""Get the graph that ONNX Runtime executes for a file, after its optimizer has fused, moved and folded it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnxruntime

from qil_deploy.errors import ModelFileError

from .model_file import OnnxFile, loadable, read_model

_FATAL = 4


def optimized_model(path: Path) -> OnnxFile:
    """Return the graph that the CPU execution provider runs for a file at the default optimization level.

    Raises:
        ModelFileError: ONNX Runtime cannot load the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        try:
            write_optimized_model(path, optimized)
        except Exception as error:  # ONNX Runtime's errors share no base class below Exception
            reason = " ".join(str(error).split()).rstrip(".")
            raise ModelFileError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {reason}.") from error
        return read_model(optimized)


def write_optimized_model(path: Path, optimized: Path) -> None:
    """Write the graph that the CPU execution provider runs for a file at the default optimization level."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.optimized_model_filepath = str(optimized)
    # Without the fallback, which prints to the screen and tries the same again.
    onnxruntime.InferenceSession(loadable(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)


def executed_operators(path: Path) -> list[tuple[str, str]]:
    """Return (operator, node name) of every executed node."""
    return [(node.op_type, node.name) for node in optimized_model(path).nodes]
