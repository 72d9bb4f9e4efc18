"""Export a frozen model: capture, lower, store the weights, write, certify, and only then give the file its name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from torch import fx

from qil_deploy.errors import CertificateError, ConfigError
from qil_deploy.exported_names import METADATA_KEY
from qil_deploy.files import atomic_path
from qil_deploy.freezing import freeze
from qil_deploy.frozen import FrozenInput, FrozenLayer
from qil_deploy.preprocessing import Preprocessing

from .capture import InputKind, capture, node_names, number_of_logits
from .certify import CertificateLine, certify
from .emitter import MICROSOFT_DOMAIN
from .keep_roundings import keep_roundings
from .lower_to_qdq import lower_to_qdq
from .lower_to_qlinear import lower_to_qlinear
from .store_weights import Storage, packed_dtype, store_weights

Format = Literal["qlinear", "qdq"]

METADATA_SCHEMA = 1
# The oldest opset that has what the storage needs (per-channel QDQ, INT4 and INT2 tensors), and the IR of that time.
_OPSETS = {ir.DataType.INT8: 13, ir.DataType.INT4: 21, ir.DataType.INT2: 25}
_IR_VERSIONS = {13: 7, 21: 10, 25: 13}
MAX_OPSET = 25


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a model is written.

    Attributes:
        format: `qlinear` (integer operators) or `qdq` (float operators between quantize and dequantize).
        weights: `packed` to 4 or 2 bits, or `int8`.
        input: `uint8` (raw images) or `float` (normalised images).
        opset: ONNX operator set; None for the oldest that the storage allows.
    """

    format: Format = "qlinear"
    weights: Storage = "packed"
    input: InputKind = "uint8"
    opset: int | None = None

    def __post_init__(self) -> None:
        """Check every value against what is allowed.

        Raises:
            ConfigError: naming the option, its value and the allowed ones.
        """
        allowed = {
            "format": ("qlinear", "qdq"),
            "weights": ("packed", "int8"),
            "input": ("uint8", "float"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; allowed are {', '.join(values)}.")


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
) -> ExportResult:
    """Write a prepared or frozen model as ONNX.

    A prepared model is frozen on the way. The file appears under its name only when ONNX's checker and every line of
    the certificate have passed.

    Args:
        model: from `prepare` or `freeze`, `integer` placement.
        path: the file to write.
        preprocessing: shape of an image and the map from its pixels to the network's input.
        class_names: one per logit.
        data: name of the data set the model was trained on.
        options: format, storage, input and opset.

    Raises:
        ConfigError: an opset that the storage does not allow, or another number of class names than of logits.
        UnsupportedModelError: a model that cannot be frozen.
        CertificateError: the graph breaks a bound.
        OutputError: `path` cannot be written.
    """
    options = options or ExportOptions()
    if not any(isinstance(module, FrozenLayer) for module in model.modules()):
        model = freeze(model)
    classes = number_of_logits(model)
    if len(class_names) != classes:
        raise ConfigError(f"class_names has {len(class_names)} names, but the model has {classes} logits.")
    opset = choose_opset(model, options)
    metadata = _metadata(model, options) | {
        "preprocessing": asdict(preprocessing),
        "class_names": list(class_names),
        "data": data,
    }
    with atomic_path(path) as temporary:
        graph = lower(model, preprocessing, options, opset)
        save_model(graph, temporary, metadata)
        lines = certify(temporary, expected_codes(model))
        save_model(graph, temporary, metadata | {"certificate": [asdict(line) for line in lines]})
    return ExportResult(path=path, size=path.stat().st_size, certificate=tuple(lines))


def lower(model: fx.GraphModule, preprocessing: Preprocessing, options: ExportOptions, opset: int) -> ir.Model:
    """Return the ONNX model of a frozen model, without metadata."""
    captured = capture(model, preprocessing, options.input)
    if options.format == "qdq" and options.weights == "int8":
        captured = keep_roundings(captured)
    lowered = lower_to_qlinear(captured) if options.format == "qlinear" else lower_to_qdq(captured)
    stored = store_weights(lowered, options.weights)
    domains = {node.domain for node in stored.graph}
    stored.graph.opset_imports.clear()
    stored.graph.opset_imports[""] = opset
    if MICROSOFT_DOMAIN in domains:
        stored.graph.opset_imports[MICROSOFT_DOMAIN] = 1
    stored.ir_version = max(version for minimum, version in _IR_VERSIONS.items() if minimum <= opset)
    return stored


def choose_opset(model: fx.GraphModule, options: ExportOptions) -> int:
    """Return the opset to write: the wanted one, or the oldest that holds the weights.

    Raises:
        ConfigError: the wanted one is too old for the storage, or newer than what is supported.
    """
    needed = _OPSETS[ir.DataType.INT8]
    if options.weights == "packed":
        needed = max(_OPSETS[packed_dtype(layer.layer.weight_quantizer.bits)] for _, layer in _layers(model))
    if options.opset is None:
        return needed
    if not needed <= options.opset <= MAX_OPSET:
        raise ConfigError(
            f"opset is {options.opset}; {options.weights} weights of this model need {needed} to {MAX_OPSET}"
            + (", or store them as int8." if options.weights == "packed" else ".")
        )
    return options.opset


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


def _metadata(model: fx.GraphModule, options: ExportOptions) -> dict[str, Any]:
    """Return what the metadata says about the model itself."""
    quantizer = next(module for module in model.modules() if isinstance(module, FrozenInput))
    layers = [
        {"name": name, "weight_bits": layer.layer.weight_quantizer.bits, "largest_input_code": int(layer.x.high)}
        for name, layer in _layers(model)
    ]
    return {
        "schema": METADATA_SCHEMA,
        "format": options.format,
        "weights": options.weights,
        "input": options.input,
        "input_scale": float(quantizer.scale),
        "input_zero_point": int(quantizer.zero_point),
        "layers": layers,
    }


def save_model(graph: ir.Model, path: Path, metadata: dict[str, Any]) -> None:
    """Write a model with its metadata and let ONNX's checker read it back.

    Raises:
        CertificateError: the checker refuses the graph.
    """
    graph.metadata_props[METADATA_KEY] = json.dumps(metadata)
    ir.save(graph, path, format="protobuf")
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CertificateError(f"ONNX's checker refuses the graph: {error}") from error
