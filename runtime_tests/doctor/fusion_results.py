"""Obstacles to fusion after an operator: activations, readers of its result, other codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from qil_deploy.onnx_io import Node
from qil_deploy.reference import Effect, effect_of

from .check_activations import is_x86
from .findings import label, quoted
from .fusion_reason import EIGHT_BITS, ONE_TYPE, Reason, many_scales, readers, wide_codes
from .graphs import Graph

# For these, some integer kernels return floats, so QuantizeLinear is not needed.
_FLOAT_RESULT: Final = frozenset({"FusedGemm", "Gemm", "MatMul"})
# Their integer kernels take no int8 codes on x86.
_UNSIGNED: Final = frozenset({"Conv", "FusedConv", "MatMul"})
_RANGES: Final = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767)}
_ADDED: Final = 3  # of FusedConv's inputs, what its result is added to
_PLACE_PAIR: Final = (
    "Put QuantizeLinear right after these operators, before anything else reads the result (DequantizeLinear after "
    "it serves those readers)."
)


def result_reasons(graph: Graph, node: Node, data: Sequence[Node], machine: str) -> Iterator[Reason | None]:
    """Yield the obstacles after an operator, the decisive one first.

    Args:
        graph: the executed graph, with the types of its tensors.
        node: the operator.
        data: the DequantizeLinear that its inputs come from.
        machine: instruction set, as Python names it.
    """
    quantizer = None
    if node.op_type == "FusedConv" and len(node.inputs) > _ADDED and node.inputs[_ADDED]:
        yield Reason(f"its result is added to {quoted(node.inputs[_ADDED])} in float, not quantized first", _PLACE_PAIR)
    activation = node.attributes.get("activation")
    if isinstance(activation, str) and activation not in ("Relu", "Clip"):
        yield Reason(
            f"{quoted(activation)[1:-1]} stands between it and QuantizeLinear, and was fused into it in float",
            "Put QuantizeLinear and DequantizeLinear between the layer and its activation, or use ReLU, which "
            "QuantizeLinear does by itself where the zero point is the smallest code.",
        )
    behind = readers(graph, node.outputs[0])
    if isinstance(activation, str):
        quantizer = _only_quantizer(behind)
        if quantizer is not None:
            yield _clipping(graph, activation, _fused_bounds(node), quantizer)
    elif len(behind) == 1 and behind[0].op_type in ("Relu", "Clip"):
        quantizer = _only_quantizer(readers(graph, behind[0].outputs[0]))
        if quantizer is not None:
            yield _clipping(graph, behind[0].op_type, _clip_bounds(graph, behind[0]), quantizer)
    if quantizer is None:
        yield _readers_reason(graph, node, behind)
        quantizer = _only_quantizer(behind)
    if quantizer is not None:
        yield from _codes(graph, node, data, quantizer)
    if is_x86(machine) and node.op_type in _UNSIGNED and graph.type_of(data[0].inputs[0]) == "int8":
        yield Reason(f"it reads int8 codes, and no integer kernel for it does on {machine}", ONE_TYPE)


def _only_quantizer(behind: Sequence[Node]) -> Node | None:
    return behind[0] if len(behind) == 1 and behind[0].op_type == "QuantizeLinear" else None


def _readers_reason(graph: Graph, node: Node, behind: Sequence[Node]) -> Reason | None:
    quantizers = [reader for reader in behind if reader.op_type == "QuantizeLinear"]
    others = [reader for reader in behind if reader.op_type != "QuantizeLinear"]
    is_output = any(info.name == node.outputs[0] for info in graph.file.outputs)
    clips = len(others) == 1 and others[0].op_type in ("Relu", "Clip")
    if node.op_type in _FLOAT_RESULT and not quantizers and not clips:
        return None
    if others:
        return Reason(f"its result goes to {label(others[0])}, not to QuantizeLinear", _PLACE_PAIR)
    if is_output or not quantizers:
        also = "also " if quantizers else ""
        return Reason(f"its result is {also}an output of the model, not quantized", _PLACE_PAIR)
    if len(quantizers) > 1:
        return Reason(f"{len(quantizers)} QuantizeLinear read its result, where one may", _PLACE_PAIR)
    return None


def _codes(graph: Graph, node: Node, data: Sequence[Node], quantizer: Node) -> Iterator[Reason | None]:
    """Yield the obstacles in the codes of the result."""
    made = graph.type_of(quantizer.outputs[0])
    read = sorted({graph.type_of(source.inputs[0]) for source in data} - {made})
    if made and made not in EIGHT_BITS:
        yield wide_codes(f"its result is quantized to {made}")
    if made and read and read[0]:
        yield Reason(f"it reads {read[0]} codes and makes {made} ones, where all must be of one type", ONE_TYPE)
    yield many_scales(graph, quantizer, "result")
    if effect_of(node) is Effect.CHOOSES:  # of one scale, before and after
        pairs = [[graph.constant(each, index) for index in (1, 2)] for each in (data[0], quantizer)]
        if any(before is None or behind is None or before != behind for before, behind in zip(*pairs, strict=True)):
            yield Reason(
                "its input and its result have other scales or zero points, or none are written",
                "Give QuantizeLinear after it the scale and the zero point of DequantizeLinear before it.",
            )


def _fused_bounds(node: Node) -> tuple[float, float] | None:
    bounds = node.attributes.get("activation_params")
    if not isinstance(bounds, list) or len(bounds) != 2:
        return None
    return float(bounds[0]), float(bounds[1])


def _clip_bounds(graph: Graph, node: Node) -> tuple[float, float] | None:
    bounds = []
    for index, default in ((1, -np.inf), (2, np.inf)):
        value = graph.constant(node, index)
        if value is None and len(node.inputs) > index and node.inputs[index]:
            return None
        bounds.append(default if value is None or value.size != 1 else float(value.ravel()[0]))
    return bounds[0], bounds[1]


def _clipping(graph: Graph, operator: str, bounds: tuple[float, float] | None, quantizer: Node) -> Reason | None:
    """Explain why QuantizeLinear's own saturation does not replace the ReLU or Clip before it."""
    kind = graph.type_of(quantizer.outputs[0])
    numbers = graph.scalars(quantizer, [1, 2] if len(quantizer.inputs) > 2 and quantizer.inputs[2] else [1])
    if kind not in _RANGES or numbers is None or numbers[0] <= 0:
        return None
    scale, zero_point = (*numbers, 0.0)[:2]
    smallest, largest = _RANGES[kind]
    if operator == "Relu" and zero_point != smallest:
        return Reason(
            f"ReLU stands before the zero point {zero_point:.0f}, which is not the smallest {kind} code, {smallest}: "
            "QuantizeLinear does not cut at zero by itself",
            "Give results of ReLU the smallest code as zero point (0 for uint8, -128 for int8): the codes below are "
            "never used, and one bit is lost. quantize_static does so unless ActivationSymmetric is set.",
        )
    if operator == "Clip" and bounds is not None:
        low, high = (np.rint(bound / scale) + zero_point for bound in bounds)
        if low > smallest or high < largest:
            return Reason(
                f"Clip comes before {label(quantizer)}, whose codes reach beyond its bounds",
                "Choose scale and zero point so that the smallest and the largest code are the bounds of Clip, or put "
                "Clip after QuantizeLinear, on codes.",
            )
    return None
