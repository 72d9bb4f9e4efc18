"""Export the float network, as the baseline that sizes and latencies are compared with."""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import asdict
from pathlib import Path

import onnx
import torch
from torch import nn

from qil_deploy.checkpoint import CheckpointInfo, example_input
from qil_deploy.files import atomic_path

from .capture import INPUT_NAME, OUTPUT_NAME
from .export import METADATA_KEY, METADATA_SCHEMA, ExportResult

FLOAT_OPSET = 21


def export_float_onnx(model: nn.Module, path: Path, info: CheckpointInfo) -> ExportResult:
    """Write a float network as ONNX: float32 normalised images in, logits out, any batch size.

    Args:
        model: the float network.
        path: the file to write.
        info: preprocessing, class names and data set, which go into the metadata.

    Raises:
        OutputError: `path` cannot be written.
    """
    with atomic_path(path) as temporary, warnings.catch_warnings():
        # The tracer warns of operators of packages that are not installed.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        # Two images: a batch of one would be taken for a constant.
        example = example_input(info.preprocessing).repeat(2, 1, 1, 1)
        program = torch.onnx.export(  # noqa: TID251 - no frozen graph to walk: this is the float baseline
            model.eval(),
            (example,),
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=FLOAT_OPSET,
            dynamo=True,
            verbose=False,
        )
        if program is None:
            raise TypeError("torch.onnx.export returned nothing")
        metadata = {
            "schema": METADATA_SCHEMA,
            "format": "float",
            "input": "float",
            "preprocessing": asdict(info.preprocessing),
            "class_names": list(info.class_names),
            "data": info.data,
        }
        program.model.metadata_props[METADATA_KEY] = json.dumps(metadata)
        program.save(temporary, external_data=False)
        onnx.checker.check_model(temporary, full_check=True)
    return ExportResult(path=path, size=path.stat().st_size, certificate=())
