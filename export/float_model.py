"""Export the float network, as the baseline that sizes and latencies are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import torch
from torch import Tensor, nn

from qil_deploy.errors import UnsupportedModelError
from qil_deploy.files import atomic_path
from qil_deploy.network import evaluation_mode, float_network
from qil_deploy.onnx_io import INPUT_NAME, METADATA_SCHEMA, OUTPUT_NAME
from qil_deploy.preprocessing import Preprocessing

from .arguments import check_details, checked_names, checked_path, checked_preprocessing
from .export import ExportResult
from .trace_float import trace_float
from .write_model import append_metadata, write_graph

FLOAT_OPSET = 21


def export_float_onnx(
    model: nn.Module,
    path: str | PathLike[str],
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
        ConfigError: an argument of the wrong kind, or another number of class names than of logits.
        UnsupportedModelError: a model from `prepare` or `freeze`, a network that does not map such images to one row of
            logits each, or one that PyTorch cannot write as ONNX.
        OutputError: `path` cannot be written.
    """
    output, preprocessing = checked_path(path), checked_preprocessing(preprocessing)
    check_details(data, None)
    network = float_network(model, "export_float_onnx")
    with evaluation_mode(network):
        names = checked_names(class_names, _count_logits(network, preprocessing))
        metadata = {
            "schema": METADATA_SCHEMA,
            "format": "float",
            "input": "float",
            "preprocessing": preprocessing.metadata(),
            "class_names": list(names),
            "data": data,
        }
        with atomic_path(output) as temporary:
            try:
                traced = trace_float(network, [preprocessing.shape], [INPUT_NAME], [OUTPUT_NAME], FLOAT_OPSET)
            except Exception as error:  # the tracer's own, of many types
                reason = str(error).strip().partition("\n")[0]
                raise UnsupportedModelError(f"PyTorch cannot write the network as ONNX: {reason}.") from error
            write_graph(traced, temporary)
            append_metadata(temporary, metadata)
    return ExportResult(path=output, size=output.stat().st_size, certificate=(), left_alone={})


@torch.no_grad()
def _count_logits(network: nn.Module, preprocessing: Preprocessing) -> int:
    """Run a network on a blank image, and return how many logits it makes of it."""
    like = next(network.parameters(), torch.zeros(()))
    image = torch.zeros(1, *preprocessing.shape, device=like.device, dtype=like.dtype)
    try:
        logits = network(image)
    except Exception as error:  # whatever the network's own code raises
        raise UnsupportedModelError(
            f"the network does not run on images of shape {list(preprocessing.shape)}: {error}"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 1:
        found = f"a tensor of shape {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise UnsupportedModelError(f"the network returns {found} for one image; it has to return one row of logits.")
    return logits.shape[1]
