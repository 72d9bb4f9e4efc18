"""From a frozen model to the graph that is written: all passes in their order, and where each of them ran.

Passes on the captured graph (`qil` nodes) come first, then the lowering to one of the two formats, then passes on what
will be executed; last, weights are stored, and opset and batch size written down.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir
from torch import fx

from qil_deploy.errors import ConfigError
from qil_deploy.integers import FrozenLayer
from qil_deploy.network import keeps_float
from qil_deploy.preprocessing import Preprocessing

from .capture import capture
from .capture_float import MIN_FLOAT_OPSET, has_float
from .capture_paper import capture_paper
from .channels_last import channels_last
from .emitter import MICROSOFT_DOMAIN, release
from .keep_roundings import keep_roundings
from .lower_to_qdq import lower_to_qdq
from .lower_to_qlinear import lower_to_qlinear
from .matmul_nbits import matmul_nbits
from .options import ExportOptions
from .simplify import simplify
from .space_to_depth import space_to_depth
from .store_weights import packed_dtype, store_weights

# The oldest opset that has what the storage needs (per-channel QDQ, INT4 and INT2 tensors), and the IR of that time.
_OPSETS = {ir.DataType.INT4: 21, ir.DataType.INT2: 25}
_IR_VERSIONS = {13: 7, 21: 10, 25: 13}
MIN_OPSET, MAX_OPSET = 13, 25


@dataclass(frozen=True, kw_only=True)
class LoweredModel:
    """A model that is ready to be written.

    Attributes:
        model: the ONNX model, without metadata.
        passes: by name of an optional pass that was switched on: the nodes it rewrote.
    """

    model: ir.Model
    passes: dict[str, list[str]] = field(default_factory=dict)


def lower(model: fx.GraphModule, preprocessing: Preprocessing, options: ExportOptions) -> LoweredModel:
    """Return the ONNX model of a frozen model, or of a prepared one in `paper` placement.

    Raises:
        ConfigError: an opset that the storage does not allow, or `qlinear` for a model with float layers.
    """
    passes: dict[str, list[str]] = {}
    float_opset = None
    if keeps_float(model):
        if options.format != "qdq":
            raise ConfigError(
                f"format is {options.format!r}; a model in 'paper' placement has float layers and is written as 'qdq'. "
                "Prepare it with placement='integer' for the other."
            )
        graph = capture_paper(model, preprocessing, options.input)
    else:
        float_opset = _choose_float_opset(model, options) if has_float(model) else None
        graph = _lower_integers(model, preprocessing, options, passes, float_opset)
    graph = _instead_of(graph, store_weights(graph, options.weights))
    _set_versions(graph, choose_opset(graph, options, float_opset))
    if options.batch is not None:
        _fix_batch(graph, options.batch)
    return LoweredModel(model=graph, passes=passes)


def _lower_integers(
    model: fx.GraphModule,
    preprocessing: Preprocessing,
    options: ExportOptions,
    passes: dict[str, list[str]],
    float_opset: int | None,
) -> ir.Model:
    """Return the graph of a frozen model, weights not stored yet; note in `passes` what was rewritten."""
    graph = capture(model, preprocessing, options.input, float_opset or MIN_FLOAT_OPSET)
    is_qlinear = options.format == "qlinear"
    optional = {
        "channels_last": (channels_last, options.channels_last and is_qlinear),
        "simplify": (simplify, options.simplify),
        "space_to_depth": (space_to_depth, options.space_to_depth),
        "matmul_nbits": (matmul_nbits, options.matmul_nbits and is_qlinear and options.weights == "packed"),
    }
    for name, (rewritten_by, wanted) in optional.items():
        if wanted:
            rewritten, passes[name] = rewritten_by(graph)
            graph = _instead_of(graph, rewritten)
    if not is_qlinear and options.weights == "int8":
        graph = _instead_of(graph, keep_roundings(graph))
    return _instead_of(graph, lower_to_qlinear(graph) if is_qlinear else lower_to_qdq(graph))


def _instead_of(graph: ir.Model, rewritten: ir.Model) -> ir.Model:
    """Return the rewritten graph, and let go of the weights of the one before."""
    release(graph)
    return rewritten


def _choose_float_opset(model: fx.GraphModule, options: ExportOptions) -> int:
    """Return the opset in which to trace what is kept in float: the one that the file is going to have."""
    layers = [module for module in model.modules() if isinstance(module, FrozenLayer)]
    stored = {packed_dtype(layer.layer.weight_quantizer.bits) for layer in layers if options.weights == "packed"}
    needed = max([MIN_FLOAT_OPSET, *(_OPSETS.get(dtype, MIN_OPSET) for dtype in stored)])
    return min(max(needed, options.opset or needed), MAX_OPSET)


def choose_opset(graph: ir.Model, options: ExportOptions, float_opset: int | None = None) -> int:
    """Return the opset to write: the wanted one, or the oldest that holds the weights and what is kept in float.

    Args:
        graph: with its weights stored.
        options: the wanted opset, if any.
        float_opset: that of the operators that are kept in float; None where there are none.

    Raises:
        ConfigError: the wanted one is too old for the storage or the float operators, or newer than what is supported.
    """
    if float_opset is not None and options.opset is not None and options.opset < MIN_FLOAT_OPSET:
        raise ConfigError(
            f"opset is {options.opset}; the operators that this model keeps in float need {MIN_FLOAT_OPSET} to "
            f"{MAX_OPSET}."
        )
    needed = max(_OPSETS.get(value.dtype, MIN_OPSET) for value in graph.graph.initializers.values() if value.dtype)
    if options.opset is None:
        return max(needed, float_opset or needed)
    if not needed <= options.opset <= MAX_OPSET:
        raise ConfigError(
            f"opset is {options.opset}; {options.weights} weights of this model need {needed} to {MAX_OPSET}"
            + (", or store them as int8." if options.weights == "packed" else ".")
        )
    return options.opset


def _set_versions(graph: ir.Model, opset: int) -> None:
    domains = {node.domain for node in graph.graph}
    graph.graph.opset_imports.clear()
    graph.graph.opset_imports[""] = opset
    if MICROSOFT_DOMAIN in domains:
        graph.graph.opset_imports[MICROSOFT_DOMAIN] = 1
    graph.ir_version = max(version for minimum, version in _IR_VERSIONS.items() if minimum <= opset)


def _fix_batch(graph: ir.Model, batch: int) -> None:
    for value in (*graph.graph.inputs, *graph.graph.outputs):
        if value.shape is None:
            raise ValueError(f"{value.name!r} has no shape")
        value.shape = ir.Shape([batch, *value.shape[1:]])
