"""What ONNX Runtime really executes for a file, after its own optimizer has fused, moved and folded the graph."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnxruntime

from .onnx_file import read_model


def executed_operators(path: Path) -> list[tuple[str, str]]:
    """Return (operator, node name) of everything that the CPU execution provider runs at the default level."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(optimized)
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return [(node.op_type, node.name) for node in read_model(optimized).nodes]
