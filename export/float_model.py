"""Export the float network, as the baseline that sizes and latencies are compared with."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import onnx_ir as ir
import torch
from torch import nn

from qil_deploy.exported_names import INPUT_NAME, OUTPUT_NAME
from qil_deploy.files import atomic_path
from qil_deploy.preprocessing import Preprocessing

from .export import METADATA_SCHEMA, ExportResult, save_model

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
        save_model(_trace(model, preprocessing), temporary, metadata)
    return ExportResult(path=path, size=path.stat().st_size, certificate=())


def _trace(model: nn.Module, preprocessing: Preprocessing) -> ir.Model:
    with warnings.catch_warnings():
        # The tracer warns of operators of packages that are not installed.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(  # noqa: TID251 - no frozen graph to walk: this is the float baseline
            model.eval(),
            # Two images: a batch of one would be taken for a constant.
            (torch.zeros(2, *preprocessing.shape),),
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=FLOAT_OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise TypeError("torch.onnx.export returned nothing")
    traced = program.model
    # Stack traces and the like: a fifteenth of a small file, and no part of the network.
    for owner in (traced, traced.graph, *traced.graph, *(value for node in traced.graph for value in node.outputs)):
        owner.metadata_props.clear()
    return traced
