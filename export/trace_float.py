"""Trace float PyTorch code to ONNX by `torch.onnx.export`: the float baseline, and float parts.

Quantized networks never come here: `capture` walks their graph.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import nn


def trace_float(
    model: nn.Module,
    input_shapes: Sequence[Sequence[int]],
    input_names: Sequence[str],
    output_names: Sequence[str],
    opset: int,
) -> ir.Model:
    """Return the ONNX model of a float module, for any number of images.

    Args:
        model: maps float tensors [N, ...] to one or more.
        input_shapes: of its inputs, without the batch.
        input_names, output_names: of the graph.
        opset: ONNX operator set.
    """
    with warnings.catch_warnings():
        # The tracer warns of operators of packages that are not installed.
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(  # noqa: TID251 - float code, which has no frozen graph to walk
            model.eval(),
            # Two images: a batch of one would be taken for a constant.
            tuple(torch.zeros(2, *shape) for shape in input_shapes),
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_shapes=({0: torch.export.Dim("batch")},) * len(input_shapes),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise TypeError("torch.onnx.export returned nothing")
    traced = program.model
    # Stack traces and such: a fifteenth of a small file, not part of the network.
    for owner in (traced, traced.graph, *traced.graph, *(value for node in traced.graph for value in node.outputs)):
        owner.metadata_props.clear()
    return traced
