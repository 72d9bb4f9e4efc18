"""All passes in order, from a captured model to the written graph.

    captured    every operator of the network is a node of the domain `qil`, or moves codes, or is kept in float
        channels_last, simplify, space_to_depth, matmul_nbits, kernels      optional: `ExportOptions`
        keep_roundings                                              for other runtimes: qdq with int8 weights
        lower                                                       to integer operators, or to QDQ
    lowered     nothing of `qil` is left but weights
        store_weights
    stored      nothing of `qil` is left
        set_versions, tidy

A pass requires the state above it, and ensures the one below (`steps`). All of them rewrite in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import onnx_ir as ir
from torch import fx

from qil_deploy.errors import ConfigError
from qil_deploy.export.capture import capture
from qil_deploy.export.capture_float import MIN_FLOAT_OPSET, has_float
from qil_deploy.export.capture_paper import capture_paper
from qil_deploy.export.emitter import QIL_DOMAIN
from qil_deploy.export.options import ExportOptions
from qil_deploy.integers import FrozenLayer
from qil_deploy.network import keeps_float
from qil_deploy.preprocessing import Preprocessing

from .channels_last import ChannelsLast
from .clip_behind_pools import ClipBehindPools
from .keep_roundings import KeepRoundings
from .kernel_additions import LowBitRescale, ResidualAdd
from .kernel_calls import LowBitMatMul, LowBitMaxPool
from .low_bit_conv import LowBitConv
from .lower_to_qdq import qdq_rules
from .lower_to_qlinear import qlinear_rules
from .matmul_nbits import MatMulNBits
from .rule import Notes, RulePass
from .set_versions import MAX_OPSET, SetVersions, oldest_opset
from .share_repeated import ShareRepeated
from .space_to_depth import SpaceToDepth
from .store_weights import StoreWeights, packed_dtype
from .tidy import Tidy


class State(Enum):
    """Operators of the domain `qil` that remain in a graph."""

    CAPTURED = frozenset(
        {
            *("Quantize", "Conv", "Gemm", "Rescale", "Add", "Mul", "Sigmoid", "LeakyRelu", "GlobalAveragePool"),
            *("MeanLogits", "Dequantize", "Weight"),
        }
    )
    LOWERED = frozenset({"Weight"})
    STORED = frozenset[str]()

    def check(self, graph: ir.Graph, error: type[Exception]) -> None:
        """Raise `error` if others remain."""
        left = {node.op_type for node in graph if node.domain == QIL_DOMAIN} - self.value
        if left:
            raise error(f"{', '.join(sorted(left))} of the domain {QIL_DOMAIN!r} is no part of a {self.name} graph")


@dataclass(frozen=True)
class Step:
    """One pass of the pipeline.

    Attributes:
        run: the pass; has `notes` where it is optional.
        requires, ensures: the state of the graph before it and after it.
        optional: the option that switches it on, '' if there is none.
    """

    run: ir.passes.InPlacePass
    requires: State
    ensures: State
    optional: str = ""


def steps(options: ExportOptions, float_opset: int | None = None) -> list[Step]:
    """Return the passes in order, without those that are switched off.

    Args:
        options: how the model is written.
        float_opset: operator set of what is kept in float; None if nothing is.
    """
    is_qlinear = options.format == "qlinear"
    captured, lowered, stored = State.CAPTURED, State.LOWERED, State.STORED
    optional: dict[str, tuple[list[ir.passes.InPlacePass], bool]] = {
        "channels_last": ([RulePass(ChannelsLast())], options.channels_last and is_qlinear),
        "simplify": ([ShareRepeated(), RulePass(ClipBehindPools())], options.simplify),
        "space_to_depth": ([RulePass(SpaceToDepth())], options.space_to_depth),
        "matmul_nbits": (
            [RulePass(MatMulNBits())],
            options.matmul_nbits and is_qlinear and options.weights == "packed",
        ),
        "kernels": (
            [
                RulePass(LowBitConv()),
                RulePass(LowBitMatMul(), LowBitMaxPool()),
                RulePass(ResidualAdd(), LowBitRescale()),
            ],
            options.kernels,
        ),
    }
    chosen = [
        Step(run, captured, captured, name) for name, (runs, wanted) in optional.items() if wanted for run in runs
    ]
    if not is_qlinear and options.weights == "int8":
        chosen.append(Step(RulePass(KeepRoundings()), captured, captured))
    return [
        *chosen,
        Step(RulePass(*(qlinear_rules() if is_qlinear else qdq_rules())), captured, lowered),
        Step(RulePass(StoreWeights(options.weights)), lowered, stored),
        Step(SetVersions(options.opset, options.weights, float_opset), stored, stored),
        Step(Tidy(options.batch), stored, stored),
    ]


def run(graph: ir.Model, chosen: Sequence[Step]) -> dict[str, Notes]:
    """Rewrite a graph in place; return the notes of the optional passes, by the name of their option.

    Raises:
        PreconditionError, PostconditionError: a pass does not find or leave what its step says.
    """
    notes: dict[str, Notes] = {}
    for step in chosen:
        step.requires.check(graph.graph, ir.passes.PreconditionError)
        step.run(graph)
        step.ensures.check(graph.graph, ir.passes.PostconditionError)
        if isinstance(step.run, RulePass | ShareRepeated) and step.optional:
            notes.setdefault(step.optional, Notes()).add(step.run.notes)
    return notes


@dataclass(frozen=True, kw_only=True)
class LoweredModel:
    """A model that is ready to write.

    Attributes:
        model: the ONNX model, without metadata.
        notes: by name of an optional pass that was switched on: what it rewrote, and what it skipped and why.
    """

    model: ir.Model
    notes: dict[str, Notes] = field(default_factory=dict)


def lower(model: fx.GraphModule, preprocessing: Preprocessing, options: ExportOptions) -> LoweredModel:
    """Return the ONNX model of a frozen model, or of a prepared one in `paper` placement.

    Raises:
        ConfigError: an opset that the storage or float operators do not allow, or `qlinear` for a model with float
            layers.
    """
    float_opset = None
    if keeps_float(model):
        if options.format != "qdq":
            raise ConfigError(
                f"format is {options.format!r}; a model in 'paper' placement has float layers and is written as 'qdq'. "
                "Prepare it with placement='integer' for the other."
            )
        graph = capture_paper(model, preprocessing, options.input)
        # Its layers are operators of ONNX from the start.
        chosen = [step for step in steps(options) if step.requires is not State.CAPTURED]
    else:
        float_opset = _choose_float_opset(model, options) if has_float(model) else None
        graph = capture(model, preprocessing, options.input, float_opset or MIN_FLOAT_OPSET)
        chosen = steps(options, float_opset)
    return LoweredModel(model=graph, notes=run(graph, chosen))


def _choose_float_opset(model: fx.GraphModule, options: ExportOptions) -> int:
    """Choose the opset in which to trace float parts: that of the file.

    Raises:
        ConfigError: the wanted one is too old.
    """
    if options.opset is not None and options.opset < MIN_FLOAT_OPSET:
        raise ConfigError(
            f"opset is {options.opset}; the operators that this model keeps in float need {MIN_FLOAT_OPSET} to "
            f"{MAX_OPSET}."
        )
    layers = [module for module in model.modules() if isinstance(module, FrozenLayer)]
    stored = {packed_dtype(layer.layer.weight_quantizer.bits) for layer in layers if options.weights == "packed"}
    needed = max(MIN_FLOAT_OPSET, oldest_opset(stored))
    return min(max(needed, options.opset or needed), MAX_OPSET)
