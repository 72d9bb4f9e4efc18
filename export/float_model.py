"""Export the float network, as the baseline that sizes and latencies are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from torch import nn

from qil_deploy.exported_names import INPUT_NAME, METADATA_SCHEMA, OUTPUT_NAME
from qil_deploy.files import atomic_path
from qil_deploy.preprocessing import Preprocessing

from .export import ExportResult, save_model
from .trace_float import trace_float

FLOAT_OPSET = 21


def export_float_onnx(
    model: nn.Module,
    path: Path,
    *,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    data: str | None = None,
) -> ExportResult:
    """Write a float network as ONNX: float32 normalised images in, logits out, any batch size.

    Args:
        model: the float network.
        path: the file to write.
        preprocessing: shape of an image and the map from its pixels to the network's input.
        class_names: one per logit.
        data: name of the data set the model was trained on.

    Raises:
        OutputError: `path` cannot be written.
    """
    metadata = {
        "schema": METADATA_SCHEMA,
        "format": "float",
        "input": "float",
        "preprocessing": asdict(preprocessing),
        "class_names": list(class_names),
        "data": data,
    }
    with atomic_path(path) as temporary:
        traced = trace_float(model, [preprocessing.shape], [INPUT_NAME], [OUTPUT_NAME], FLOAT_OPSET)
        save_model(traced, temporary, metadata)
    return ExportResult(path=path, size=path.stat().st_size, certificate=())
