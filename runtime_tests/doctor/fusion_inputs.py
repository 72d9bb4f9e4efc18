"""Obstacles to fusion before an operator: codes and scales of its inputs, weights and bias."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from qil_deploy.onnx_io import Node
from qil_deploy.reference import operator_of

from .check_fused_scales import bias_scales, differing_scale, output_axis
from .check_scale_shapes import scale_axis
from .check_weights import PACKED
from .findings import label, quoted
from .fusion_reason import CASTS, EIGHT_BITS, Reason, dequantizes, many_scales, overridable, wide_codes
from .graphs import FLOAT_TYPES, Graph

_CONVOLUTIONS: Final = frozenset({"Conv", "FusedConv"})
_ALL_DEQUANTIZED: Final = frozenset({"Add", "Concat", "Mul"})
_ADDED: Final = 3  # of FusedConv's inputs
_BIAS_REMEDY: Final = (
    "Store the bias as int32 with the scale (scale of the input) * (scale of the weights), as many as the weights "
    "have, and no zero point: sums have no other scale. A bias that layers with different inputs share must be stored "
    "once for each."
)


def input_reasons(graph: Graph, node: Node, sources: dict[str, Node | None]) -> Iterator[Reason | None]:
    """Yield the obstacles before an operator, the decisive one first.

    Args:
        graph: the executed graph, with the types of its tensors.
        node: the operator.
        sources: by its inputs that are not constant, the nodes that they come from.
    """
    yield _float_input(graph, node, sources)
    data = [source for source in sources.values() if source is not None and dequantizes(source)]
    for source in data:
        yield _codes(graph, source, "its input is")
        yield many_scales(graph, source, "input")
    if operator_of(node).is_float_layer and len(node.inputs) > 1 and node.inputs[1] in graph.constants:
        yield from _weights(graph, node, data[0])


def float_parameters(graph: Graph, node: Node) -> Iterator[Reason | None]:
    """Yield float weights and bias: ONNX Runtime quantizes them itself if everything else is in order."""
    for index, what in ((1, "weights"), (2, "bias")):
        if not operator_of(node).is_float_layer or len(node.inputs) <= index or not node.inputs[index]:
            continue
        source = graph.source(node.inputs[index], CASTS)
        if dequantizes(source):
            continue
        if node.inputs[index] in graph.overridable:
            yield overridable(f"its {what} {quoted(node.inputs[index])}")
        come = f"come{'s' if what == 'bias' else ''} from {label(source)}" if source is not None else ""
        yield Reason(
            f"its {what} {come or ('is float' if what == 'bias' else 'are float')}",
            _BIAS_REMEDY
            if what == "bias"
            else "Quantize weights to int8 with QuantizeLinear and DequantizeLinear, or store their codes.",
        )


def _float_input(graph: Graph, node: Node, sources: dict[str, Node | None]) -> Reason | None:
    remedy = "Quantize every input of these operators: each must come from DequantizeLinear."
    for name, source in sources.items():
        # What is added to a fused convolution comes after it in the file (fusion_results.py).
        is_added = node.op_type == "FusedConv" and name in node.inputs[_ADDED:]
        if not dequantizes(source) and not is_added:
            return Reason(f"its input from {'outside' if source is None else label(source)} is float", remedy)
    for name in node.inputs if node.op_type in _ALL_DEQUANTIZED else ():
        if name in graph.constants and not dequantizes(graph.source(name, CASTS)):
            return Reason(f"its constant input {quoted(name)} is float", remedy)
    return None


def _codes(graph: Graph, dequantizer: Node, what: str) -> Reason | None:
    """Return the reason if a DequantizeLinear reads or makes a type that no integer kernel takes."""
    kind = graph.type_of(dequantizer.inputs[0])
    made = graph.types.get(dequantizer.outputs[0]) or graph.type_of(dequantizer.inputs[1])
    if made in FLOAT_TYPES - {"float32"}:
        return Reason(
            f"{what} dequantized to {made}",
            "Keep scales, and the float tensors between QuantizeLinear and DequantizeLinear, in float32: integer "
            "kernels take no other scales. Convert to float16 what stays float, if anything.",
        )
    if kind in PACKED:
        return Reason(
            f"{what} {kind} (put Cast to int8 before DequantizeLinear)",
            "Put Cast to int8 between packed codes and DequantizeLinear.",
        )
    return wide_codes(f"{what} {kind} codes") if kind and kind not in EIGHT_BITS else None


def _weights(graph: Graph, node: Node, data: Node) -> Iterator[Reason | None]:
    """Yield the defects of a layer's weights or bias."""
    weights = graph.source(node.inputs[1], CASTS)
    if weights is None or not dequantizes(weights):
        return
    yield _codes(graph, weights, "its weights are")
    if graph.type_of(data.inputs[0]) == "int8" and graph.type_of(weights.inputs[0]) == "uint8":
        yield Reason("it reads int8 codes and has uint8 weights", "Use int8 weights, or uint8 activations.")
    axis, expected = scale_axis(graph, weights), output_axis(node)
    scale = graph.constant(weights, 1)
    if axis is not None and axis != expected and scale is not None and scale.size > 1:
        yield Reason(
            f"its weights' scales lie along axis {axis}, and its output channels along axis {expected}",
            "Quantize weights with one scale for each output channel, or one for all.",
        )
    if len(node.inputs) > 2 and node.inputs[2]:
        yield from _bias(graph, node, data, weights)


def _bias(graph: Graph, node: Node, data: Node, weights: Node) -> Iterator[Reason | None]:
    """Yield the defects of a layer's bias."""
    for name in ("alpha", "beta"):
        if node.attributes.get(name, 1.0) != 1.0:
            yield Reason(
                f"its {name} is {node.attributes[name]}, beside a bias",
                "Multiply alpha into the scale of the weights, and beta into the bias.",
            )
    bias = graph.source(node.inputs[2], CASTS)
    if bias is None or not dequantizes(bias):
        return
    if (kind := graph.type_of(bias.inputs[0])) != "int32":
        yield Reason(f"its bias is {kind}, where sums are int32", _BIAS_REMEDY)
    zero_point = graph.constant(bias, 2)
    if zero_point is not None and zero_point.any():
        yield Reason("its bias has a zero point other than 0", _BIAS_REMEDY)
    if node.op_type in _CONVOLUTIONS:
        yield from _bias_scale(graph, bias, data, weights)


def _bias_scale(graph: Graph, bias: Node, data: Node, weights: Node) -> Iterator[Reason | None]:
    """Yield the defects of the scale of a convolution's bias, which ONNX Runtime compares with that of its sums."""
    for name in (bias.inputs[1], data.inputs[1], weights.inputs[1]):
        if name in graph.overridable:
            yield overridable(f"{quoted(name)}, which the scale of its sums depends on,")
        elif name not in graph.constants:
            yield Reason(f"the scale of its sums depends on {quoted(name)}, which is computed", _BIAS_REMEDY)
    scales = bias_scales(graph, bias, data, weights)
    if scales is None:
        return
    own, expected = scales
    if own.size != expected.size:
        yield Reason(f"the scales of its bias are {own.size}, and those of its weights {expected.size}", _BIAS_REMEDY)
    elif (pair := differing_scale(own, expected)) is not None:
        yield Reason(
            f"its bias has the scale {pair[0]:.4g}, and those of input and weights multiply to {pair[1]:.4g}",
            _BIAS_REMEDY,
        )
