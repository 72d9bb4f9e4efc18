"""Export the float network, the baseline for comparisons of size and latency."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import torch
from torch import Tensor, nn

from qil_deploy.errors import UnsupportedModelError
from qil_deploy.files import atomic_path
from qil_deploy.network import evaluation_mode, float_network, named_tensors, require_maps_of_images, tensors_of
from qil_deploy.onnx_io import INPUT_NAME, METADATA_SCHEMA, NetworkOutput, outputs_in_metadata
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
    """Write a float network as ONNX: float32 normalised images in, logits or maps out, any batch size.

    Args:
        model: the float network.
        path: the file to write.
        preprocessing: shape of an image and the map from its pixels to the network's input.
        class_names: one per logit; any number or none for maps or several outputs.
        data: name of the data set the model was trained on.

    Raises:
        ConfigError: an argument of the wrong kind, or another number of class names than of logits.
        UnsupportedModelError: a model from `prepare` or `freeze`, a network that does not map such images to rows or
            maps of floats, or one that PyTorch cannot write as ONNX.
        OutputError: `path` cannot be written.
    """
    output, preprocessing = checked_path(path), checked_preprocessing(preprocessing)
    check_details(data, None)
    network = float_network(model, "export_float_onnx")
    with evaluation_mode(network):
        outputs = _outputs(network, preprocessing)
        rows = len(outputs) == len(outputs[0].shape) == 1
        names = checked_names(class_names, outputs[0].shape[0] if rows else None)
        metadata = {
            "schema": METADATA_SCHEMA,
            "format": "float",
            "input": "float",
            "preprocessing": preprocessing.metadata(),
            "class_names": list(names),
            **outputs_in_metadata(outputs),
            "data": data,
        }
        with atomic_path(output) as temporary:
            try:
                traced = trace_float(
                    _Tensors(network),
                    [preprocessing.shape],
                    [INPUT_NAME],
                    [output.name for output in outputs],
                    FLOAT_OPSET,
                )
            except Exception as error:  # the tracer's own, of many types
                reason = str(error).strip().partition("\n")[0]
                raise UnsupportedModelError(f"PyTorch cannot write the network as ONNX: {reason}.") from error
            write_graph(traced, temporary)
            append_metadata(temporary, metadata)
    return ExportResult(path=output, size=output.stat().st_size, certificate=(), left_alone={})


class _Tensors(nn.Module):
    """Returns the tensors of a network's output, without containers and other objects."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return them in order."""
        return tuple(tensors_of(self.network(x)))


@torch.no_grad()
def _outputs(network: nn.Module, preprocessing: Preprocessing) -> list[NetworkOutput]:
    """Run a network on a blank image, and return its outputs."""
    like = next(network.parameters(), torch.zeros(()))
    image = torch.zeros(1, *preprocessing.shape, device=like.device, dtype=like.dtype)
    try:
        result = network(image)
    except Exception as error:  # whatever the network's own code raises
        raise UnsupportedModelError(
            f"the network does not run on images of shape {list(preprocessing.shape)}: {error}"
        ) from error
    found = named_tensors(result)
    if not found or not all(tensor.is_floating_point() for _, tensor in found):
        types = ", ".join(str(tensor.dtype)[6:] for _, tensor in found) or "no tensor"
        raise UnsupportedModelError(
            f"the network returns {types} for one image; it has to return rows or maps of floats."
        )
    require_maps_of_images([(name, tuple(tensor.shape)) for name, tensor in found], image.shape)
    return [
        NetworkOutput(name=name, shape=tuple(tensor.shape[1:]), kind="logits" if tensor.ndim == 2 else "dense logits")
        for name, tensor in found
    ]
