"""Export a frozen model: capture, lower, store the weights, write, certify; only then does the file get its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx, nn

from qil_deploy.errors import QilDeployError
from qil_deploy.files import atomic_path
from qil_deploy.integers import FreezingReport, FrozenFloat, FrozenInput, FrozenLayer, freeze
from qil_deploy.metrics import BoxDecoder, decoder_in_metadata
from qil_deploy.network import (
    FrozenModel,
    QuantConv2d,
    QuantLinear,
    input_of,
    keeps_float,
    module_of,
    operator_of,
    prepared_model,
)
from qil_deploy.onnx_io import METADATA_KEY, METADATA_SCHEMA, outputs_in_metadata, read_model
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import ActivationQuantizer
from qil_deploy.reference import float_kernels

from .arguments import check_boxes, check_details, check_same_input, checked_names, checked_path, checked_preprocessing
from .capture import node_names
from .capture_paper import paper_codes
from .certify import CertificateLine, bound, bound_weights, stored_lines
from .emitter import release
from .layer_codes import LayerCodes
from .options import ExportOptions, checked_options
from .outputs import network_outputs
from .passes import lower
from .write_model import append_metadata, metadata_text, write_graph

_REASONS_SHARE = 1 / 160  # of a file, for reasons why nodes were not rewritten; smaller files have none


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """Result of an export.

    Attributes:
        path: the ONNX file.
        size: bytes.
        certificate: the lines that hold for it.
        left_alone: by pass, which nodes it did not change, and why.
    """

    path: Path
    size: int
    certificate: tuple[CertificateLine, ...]
    left_alone: Mapping[str, Mapping[str, Sequence[str]]]


def export_onnx(
    model: nn.Module,
    path: str | PathLike[str],
    *,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    data: str | None = None,
    options: ExportOptions | None = None,
    freezing: FreezingReport | None = None,
    boxes: BoxDecoder | None = None,
) -> ExportResult:
    """Write a prepared or frozen model as ONNX.

    A prepared model is frozen on the way, except in `paper` placement, whose float layers cannot be. The file appears
    under its name only when ONNX's checker and every line of the certificate have passed. It is written once, from its
    first byte to its last: what is certified is what stays. Besides the model, this takes at most about as much memory
    as its float weights.

    Args:
        model: from `prepare` or `freeze`; may be wrapped, as for training in several processes or compiled.
        path: the file to write.
        preprocessing: shape of an image and the map from its pixels to the network's input, as `prepare` was given it.
        class_names: one per logit, or for maps what the channels are, if they have names.
        data: name of the data set the model was trained on.
        options: format, storage, input and opset.
        freezing: what freezing cost, for the metadata; None if it was not measured.
        boxes: how a detector's outputs encode boxes, for the metadata; None for any other network.

    Raises:
        ConfigError: an argument of the wrong kind, an opset that the storage does not allow, `qlinear` for `paper`
            placement, another preprocessing than that of `prepare`, or another number of class names than of logits.
        UnsupportedModelError: a model that is not from `prepare` or `freeze`, or cannot be frozen.
        CertificateError: the graph breaks a bound, or ONNX Runtime cannot run it.
        OutputError: `path` cannot be written.
    """
    output, preprocessing = checked_path(path), checked_preprocessing(preprocessing)
    check_details(data, freezing)
    options = checked_options(options)
    graph_module = prepared_model(model, "export_onnx")
    shapes = [output.shape for _, output in network_outputs(graph_module)]
    names = checked_names(class_names, shapes[0][0] if len(shapes) == len(shapes[0]) == 1 else None)
    check_same_input(graph_module, preprocessing)
    check_boxes(boxes, {output.name: output.shape for _, output in network_outputs(graph_module)})
    paper = keeps_float(graph_module)
    if not paper and not isinstance(graph_module, FrozenModel):
        graph_module = freeze(graph_module, share_parameters=True)
    metadata = (_paper_metadata(graph_module) if paper else _integer_metadata(graph_module)) | {
        "schema": METADATA_SCHEMA,
        "format": options.format,
        "weights": options.weights,
        "input": options.input,
        "batch": options.batch,
        "passes": {},
        "preprocessing": preprocessing.metadata(),
        "class_names": list(names),
        **outputs_in_metadata([output for _, output in network_outputs(graph_module)]),
        **decoder_in_metadata(boxes),
        "data": data,
        "freezing": None if freezing is None else asdict(freezing),
    }
    lowered = lower(graph_module, preprocessing, options)
    metadata["passes"] = {name: notes.rewritten for name, notes in lowered.notes.items()}
    left_alone = {name: notes.left_alone for name, notes in lowered.notes.items() if notes.left_alone}
    with atomic_path(output) as temporary, _named(temporary, output):
        write_graph(lowered.model, temporary)
        release(lowered.model)  # the file holds all weights now
        if len(metadata_text({"left_alone": left_alone})) <= _REASONS_SHARE * temporary.stat().st_size:
            metadata["left_alone"] = left_alone
        written = replace(read_model(temporary), metadata={METADATA_KEY: metadata_text(metadata)})
        if paper:
            bounded = bound_weights(written, paper_codes(graph_module))
            metadata["float_parts"] = [name for _, name in float_kernels(temporary)]
        else:
            bounded = bound(written, expected_codes(graph_module))
        # The graph stays as it was read; with its metadata after it, it runs as it will for whoever has the file.
        append_metadata(temporary, metadata | {"certificate": stored_lines(bounded.lines)})
        lines = bounded.run(temporary)
    return ExportResult(path=output, size=output.stat().st_size, certificate=tuple(lines), left_alone=left_alone)


@contextmanager
def _named(temporary: Path, output: Path) -> Iterator[None]:
    """Name the requested file in errors, instead of the temporary one."""
    try:
        yield
    except QilDeployError as error:
        raise type(error)(str(error).replace(str(temporary), str(output))) from error


def expected_codes(model: fx.GraphModule) -> LayerCodes:
    """Return `codes * spread` of every layer of a frozen model, by graph node name."""
    return LayerCodes({name: partial(_spread_codes, layer) for name, layer in _layers(model)})


def _spread_codes(layer: FrozenLayer) -> NDArray[np.int8]:
    codes: NDArray[np.int8] = (
        layer.weight_codes * layer.spread.reshape((-1,) + (1,) * (layer.weight_codes.ndim - 1))
    ).numpy()
    return codes


def _layers(model: fx.GraphModule) -> list[tuple[str, FrozenLayer]]:
    """Return (graph node name, layer) of every frozen layer."""
    return [
        (name, module)
        for node, name in node_names(model).items()
        if isinstance(module := model.get_submodule(str(node.target)), FrozenLayer)
    ]


def _integer_metadata(model: fx.GraphModule) -> dict[str, Any]:
    """Return the metadata of a frozen model."""
    quantizer = next(module for module in model.modules() if isinstance(module, FrozenInput))
    layers = [
        {
            "name": name,
            "weight_bits": layer.layer.weight_quantizer.bits,
            "weight_shape": list(layer.weight_codes.shape),
            "largest_input_code": int(layer.x.high),
        }
        for name, layer in _layers(model)
    ]
    kept = [
        name
        for node, name in node_names(model).items()
        if isinstance(model.get_submodule(str(node.target)), FrozenFloat)
    ]
    moved = [
        name
        for node, name in node_names(model).items()
        if (row := operator_of(model.get_submodule(str(node.target)))) is not None and row.rearranges
    ]
    return {
        "placement": "integer",
        **({"float_parts": kept} if kept else {}),
        **({"permuted": moved} if moved else {}),
        "input_scale": float(quantizer.scale),
        "input_zero_point": int(quantizer.zero_point),
        "layers": layers,
    }


def _paper_metadata(model: fx.GraphModule) -> dict[str, Any]:
    """Return the metadata of a prepared model in `paper` placement."""
    layers = [
        {
            "name": name,
            "weight_bits": layer.weight_quantizer.bits,
            "weight_shape": list(layer.weight.shape),
            "largest_input_code": quantizer.largest_code,
        }
        for node, name in node_names(model).items()
        if isinstance(layer := module_of(model, node), QuantConv2d | QuantLinear)
        and isinstance(quantizer := module_of(model, input_of(node)), ActivationQuantizer)
    ]
    return {"placement": "paper", "layers": layers}
