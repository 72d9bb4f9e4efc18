"""Findings about scales that ONNX Runtime's optimizer misread when it fused a layer.

    layer    sums over the input channels: only scales along the output channels can be taken out of the sum, whose own
             scale is that of the input times that of the weights; the bias is added to it

ONNX Runtime fuses DequantizeLinear and Conv or Gemm without looking at the axis that the scales lie along, and Gemm
without looking at the scale of its bias: the results are not the file's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from qil_deploy.onnx_io import Node
from qil_deploy.reference import operator_of

from .check_scale_shapes import scale_axis
from .findings import Finding, found
from .graphs import Graph

_BIAS_TOLERANCE: Final = 0.02  # relative, of ONNX Runtime's own check of convolutions

Scales = NDArray[np.float64]


def fused_scales(written: Sequence[Graph], executed: Sequence[Graph]) -> list[Finding]:
    """Find written layers that became integer kernels, though no integer kernel computes the same."""
    return [
        *found(
            "scale-axis",
            "wrong",
            list(_wrong_axes(written, executed)),
            what="weight scales lie along another axis than the output channels, and were fused all the same",
            why="No integer kernel can compute that: the optimizer took the scales for those of the output channels.",
            remedy="Quantize weights with one scale for each output channel (axis 0 of Conv and of Gemm with transB, 1 "
            "of Gemm and MatMul), or one for all. Until then, run the file without optimizations.",
        ),
        *found(
            "bias-scale",
            "wrong",
            list(_wrong_biases(written, executed)),
            what="the scale of a bias is not that of the sums, and it was fused all the same",
            why="The integer kernel adds the bias to sums whose scale is that of the input times that of the weights: "
            "the optimizer did not look at the bias's own.",
            remedy="Store the bias with the scale (scale of the input) * (scale of the weights). Until then, run the "
            "file without optimizations.",
        ),
    ]


def output_axis(layer: Node) -> int:
    """Return the axis of a layer's weights that its output channels lie along."""
    if layer.op_type in ("Conv", "FusedConv", "QLinearConv"):
        return 0
    if layer.op_type in ("Gemm", "FusedGemm", "QGemm") and layer.attributes.get("transB", 0):
        return 0
    return 1


def bias_scales(graph: Graph, bias: Node, data: Node, weights: Node) -> tuple[Scales, Scales] | None:
    """Return the scales of a layer's bias, and those of its sums; None where they are not known.

    Args:
        graph: the one it is in.
        bias: the DequantizeLinear of its bias.
        data: that of its input.
        weights: that of its weights.
    """
    values = [graph.constant(node, 1) for node in (bias, data, weights)]
    scales = [value.astype(np.float64).ravel() for value in values if value is not None and value.dtype.kind == "f"]
    if len(scales) < len(values) or scales[1].size != 1 or 0 in (scales[0].size, scales[2].size):
        return None
    return scales[0], scales[1] * scales[2]


def differing_scale(own: Scales, expected: Scales) -> tuple[float, float] | None:
    """Return the first scale of a bias that differs from the expected one, and the expected one; None if none does.

    Raises:
        ValueError: their numbers differ, and neither is one.
    """
    own, expected = np.broadcast_arrays(own, expected)
    wrong = ~(np.abs(own - expected) <= _BIAS_TOLERANCE * np.abs(expected))
    if not wrong.any():
        return None
    first = int(np.argmax(wrong))
    return float(own[first]), float(expected[first])


def _fused_layers(written: Sequence[Graph], executed: Sequence[Graph]) -> Iterator[tuple[Graph, Node, Node]]:
    """Yield written layers that became integer kernels, with the DequantizeLinear of their weights."""
    nodes = [node for graph in executed for node in graph.file.nodes]
    fused = {node.inputs[3] for node in nodes if operator_of(node).is_integer_layer and len(node.inputs) > 3}
    # Layers that share weights with a fused one may be left.
    left = {name for node in nodes if operator_of(node).is_float_layer for name in (node.name, *node.outputs) if name}
    for graph in written:
        for node in graph.file.nodes:
            if node.op_type not in ("Conv", "Gemm", "MatMul") or len(node.inputs) < 2:
                continue
            weights = graph.producers.get(node.inputs[1])
            if weights is None or weights.op_type != "DequantizeLinear" or len(weights.inputs) < 2:
                continue
            if weights.inputs[0] in fused and not left.intersection((node.name, *node.outputs)):
                yield graph, node, weights


def _wrong_axes(written: Sequence[Graph], executed: Sequence[Graph]) -> Iterator[str]:
    """Yield layers with weights whose scales differ along another axis, and that were fused."""
    for graph, node, weights in _fused_layers(written, executed):
        scale, axis, expected = graph.constant(weights, 1), scale_axis(graph, weights), output_axis(node)
        shape = graph.shape_of(weights.inputs[0])
        if scale is None or axis is None or axis == expected or bool((scale == scale.ravel()[:1]).all()):
            continue
        if shape is None or (axis < len(shape) and shape[axis] == scale.size):  # else they do not fit (scale-shape)
            yield (
                f"{graph.label(node)}: scales along axis {axis} of {graph.label(weights)}, and output channels along "
                f"axis {expected}"
            )


def _wrong_biases(written: Sequence[Graph], executed: Sequence[Graph]) -> Iterator[str]:
    """Yield layers whose bias has another scale than their sums, and that were fused."""
    for graph, node, weights in _fused_layers(written, executed):
        data = graph.source(node.inputs[0], frozenset())
        bias = graph.source(node.inputs[2], frozenset()) if len(node.inputs) > 2 else None
        if data is None or bias is None or {data.op_type, bias.op_type} != {"DequantizeLinear"}:
            continue
        scales = bias_scales(graph, bias, data, weights)
        if scales is None or (scales[0].size != scales[1].size and 1 not in (scales[0].size, scales[1].size)):
            continue
        if (pair := differing_scale(*scales)) is not None:
            yield (
                f"{graph.label(node)}: its bias has the scale {pair[0]:.4g}, and those of input and weights multiply "
                f"to {pair[1]:.4g}"
            )
