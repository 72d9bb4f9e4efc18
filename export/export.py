"""Export a frozen model: capture, lower, store the weights, write, certify, and only then give the file its name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from torch import fx

from qil_deploy.errors import CertificateError, ConfigError
from qil_deploy.executed_kernels import float_kernels
from qil_deploy.exported_names import METADATA_KEY
from qil_deploy.files import atomic_path
from qil_deploy.freezing import freeze, keeps_float
from qil_deploy.freezing_report import FreezingReport
from qil_deploy.frozen import FrozenFloat, FrozenInput, FrozenLayer
from qil_deploy.graph import input_of, module_of
from qil_deploy.layers import QuantConv2d, QuantLinear
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.quantizers import ActivationQuantizer

from .capture import node_names, number_of_logits
from .capture_paper import paper_codes
from .certify import CertificateLine, certify, certify_weights
from .lowering import lower
from .options import ExportOptions

METADATA_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written.

    Attributes:
        path: the ONNX file.
        size: bytes.
        certificate: the lines that hold for it.
    """

    path: Path
    size: int
    certificate: tuple[CertificateLine, ...]


def export_onnx(
    model: fx.GraphModule,
    path: Path,
    *,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    data: str | None = None,
    options: ExportOptions | None = None,
    freezing: FreezingReport | None = None,
) -> ExportResult:
    """Write a prepared or frozen model as ONNX.

    A prepared model is frozen on the way, except in `paper` placement, whose float layers cannot be. The file appears
    under its name only when ONNX's checker and every line of the certificate have passed.

    Args:
        model: from `prepare` or `freeze`.
        path: the file to write.
        preprocessing: shape of an image and the map from its pixels to the network's input.
        class_names: one per logit.
        data: name of the data set the model was trained on.
        options: format, storage, input and opset.
        freezing: what freezing cost, for the metadata; None if it was not measured.

    Raises:
        ConfigError: an opset that the storage does not allow, `qlinear` for `paper` placement, or another number of
            class names than of logits.
        UnsupportedModelError: a model that cannot be frozen.
        CertificateError: the graph breaks a bound.
        OutputError: `path` cannot be written.
    """
    options = options or ExportOptions()
    paper = keeps_float(model)
    if not paper and not any(isinstance(module, FrozenLayer) for module in model.modules()):
        model = freeze(model)
    classes = number_of_logits(model)
    if len(class_names) != classes:
        raise ConfigError(f"class_names has {len(class_names)} names, but the model has {classes} logits.")
    lowered = lower(model, preprocessing, options)
    metadata = (_paper_metadata(model) if paper else _integer_metadata(model)) | {
        "schema": METADATA_SCHEMA,
        "format": options.format,
        "weights": options.weights,
        "input": options.input,
        "batch": options.batch,
        "passes": lowered.passes,
        "preprocessing": asdict(preprocessing),
        "class_names": list(class_names),
        "data": data,
        "freezing": None if freezing is None else asdict(freezing),
    }
    with atomic_path(path) as temporary:
        save_model(lowered.model, temporary, metadata)
        if paper:
            lines = certify_weights(temporary, paper_codes(model))
            metadata["float_parts"] = [name for _, name in float_kernels(temporary)]
        else:
            lines = certify(temporary, expected_codes(model))
        save_model(lowered.model, temporary, metadata | {"certificate": [asdict(line) for line in lines]})
    return ExportResult(path=path, size=path.stat().st_size, certificate=tuple(lines))


def expected_codes(model: fx.GraphModule) -> dict[str, NDArray[np.int8]]:
    """Return `codes * spread` of every layer of a frozen model, by graph node name."""
    result = {}
    for name, layer in _layers(model):
        spread = layer.spread.reshape((-1,) + (1,) * (layer.weight_codes.ndim - 1))
        result[name] = (layer.weight_codes * spread).numpy()
    return result


def _layers(model: fx.GraphModule) -> list[tuple[str, FrozenLayer]]:
    """Return (graph node name, layer) of every frozen layer."""
    return [
        (name, module)
        for node, name in node_names(model).items()
        if isinstance(module := model.get_submodule(str(node.target)), FrozenLayer)
    ]


def _integer_metadata(model: fx.GraphModule) -> dict[str, Any]:
    """Return what the metadata says about a frozen model."""
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
    return {
        "placement": "integer",
        **({"float_parts": kept} if kept else {}),
        "input_scale": float(quantizer.scale),
        "input_zero_point": int(quantizer.zero_point),
        "layers": layers,
    }


def _paper_metadata(model: fx.GraphModule) -> dict[str, Any]:
    """Return what the metadata says about a prepared model in `paper` placement."""
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


def save_model(graph: ir.Model, path: Path, metadata: dict[str, Any]) -> None:
    """Write a model with its metadata and let ONNX's checker read it back.

    Raises:
        CertificateError: the checker refuses the graph.
    """
    graph.metadata_props[METADATA_KEY] = json.dumps(metadata, separators=(",", ":"))
    ir.save(graph, path, format="protobuf")
    try:
        onnx.checker.check_model(path if _is_unicode(path) else path.read_bytes(), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CertificateError(f"ONNX's checker refuses the graph: {error}") from error


def _is_unicode(path: Path) -> bool:
    """Return whether the checker can open a path: file names need not be UTF-8, and it takes no others."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
