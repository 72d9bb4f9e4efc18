"""Findings about the number of scales, their axis, and the number of zero points.

DequantizeLinear  y = (x - zero_point) * scale, with one scale for all of x, one for each index along `axis`, or one
for each block of `block_size` along it
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from qil_deploy.onnx_io import Node
from qil_deploy.reference import operator_of

from .findings import Finding, found
from .graphs import Graph

_DEFAULT_AXIS: Final = 1
_SCALE, _ZERO_POINT = 4, 5  # of the weights of integer layers


def scale_shapes(written: Sequence[Graph], executed: Sequence[Graph], *, fails: bool) -> list[Finding]:
    """Find scales and zero points whose shapes do not fit their tensor.

    Args:
        written: the graphs of the file.
        executed: as ONNX Runtime runs them; none if it does not load.
        fails: whether ONNX Runtime does not load the file, or fails when it runs it.
    """
    own = {node.op_type for graph in written for node in graph.file.nodes}
    nodes = [(graph, node) for graph in written for node in graph.file.nodes]
    nodes += [(graph, node) for graph in executed for node in graph.file.nodes if node.op_type not in own]
    defects = [f"{graph.label(node)}: {defect}" for graph, node in nodes for defect in _defects(graph, node)]
    if fails:
        defects += _activations_by_channel(written)
    return found(
        "scale-shape",
        "blocks" if fails else "wrong",
        list(dict.fromkeys(defects)),
        what="scales or zero points do not fit what they belong to",
        why="The standard gives no meaning to them. ONNX Runtime fails when it runs such an operator; fused to "
        "another one by the optimizer, it may run, and compute something else than other runtimes.",
        remedy="Activations have one scale and zero point; weights have one, or one for each output channel along "
        "the axis that DequantizeLinear names (its default is 1, and weights of Conv need 0).",
    )


def scale_axis(graph: Graph, node: Node) -> int | None:
    """Return the axis of a QuantizeLinear or DequantizeLinear, counted from the front, if it can be determined."""
    axis = node.attributes.get("axis", _DEFAULT_AXIS)
    if not isinstance(axis, int):
        return None
    if axis >= 0:
        return axis
    shape = graph.shape_of(node.inputs[0])
    return axis + len(shape) if shape is not None else None


def _defects(graph: Graph, node: Node) -> Iterator[str]:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.inputs) > 1:
        yield from _pair_defects(graph, node)
    for grid in operator_of(node).grids:
        for name, index in (("scales", grid.scale), ("zero points", grid.zero_point)) if not grid.many else ():
            value = graph.constant(node, index)
            if value is not None and value.size != 1:
                yield f"its {grid.what} has {value.size} {name}, and may have one"
    if operator_of(node).is_integer_layer:
        yield from _layer_defects(graph, node)


def _pair_defects(graph: Graph, node: Node) -> Iterator[str]:
    """Yield the defects of a QuantizeLinear or DequantizeLinear."""
    scale, zero_point = graph.shape_of(node.inputs[1]), None
    if len(node.inputs) > 2 and node.inputs[2]:
        zero_point = graph.shape_of(node.inputs[2])
    if scale is None or not all(isinstance(size, int) for size in scale):
        return
    sizes = [size for size in scale if isinstance(size, int)]
    if zero_point is not None and _is_other(sizes, zero_point):
        yield f"its scale has shape {sizes}, its zero point {list(zero_point)}"
    if math.prod(sizes) == 1:
        return
    shape, axis = graph.shape_of(node.inputs[0]), scale_axis(graph, node)
    block = node.attributes.get("block_size", 0)
    if isinstance(block, int) and block > 0:
        if shape is not None and len(shape) != len(sizes):
            yield f"its scales for blocks have {len(sizes)} dimensions, and its input has {len(shape)}"
        return
    if len(sizes) > 1:
        yield f"its scale has shape {sizes}; one number or a list of them is allowed"
    elif shape is not None and axis is not None and not 0 <= axis < len(shape):
        yield f"its axis is {axis}, and its input has {len(shape)} dimensions"
    elif shape is not None and axis is not None and isinstance(shape[axis], int) and shape[axis] != sizes[0]:
        yield f"it has {sizes[0]} scales along axis {axis}, which has {shape[axis]}"


def _is_other(scale: Sequence[int], zero_point: Sequence[int | str | None]) -> bool:
    """Whether shapes differ beyond the notation of a single number."""
    sizes = [size for size in zero_point if isinstance(size, int)]
    is_single = math.prod(scale) == 1 and len(sizes) == len(zero_point) and math.prod(sizes) == 1
    return not is_single and list(scale) != list(zero_point)


def _layer_defects(graph: Graph, node: Node) -> Iterator[str]:
    weights = graph.constant(node, 3)
    if weights is None or weights.ndim < 2:
        return
    channels = weights.shape[0 if _is_channel_first(node) else -1]
    for name, index in (("scales", _SCALE), ("zero points", _ZERO_POINT)):
        value = graph.constant(node, index)
        if value is not None and value.size not in (1, channels):
            yield f"its weights have {value.size} {name}, and {channels} output channels"
        elif value is not None and value.ndim > 1 and value.size > 1 and node.op_type == "QLinearConv":
            yield f"its weights' {name} have shape {list(value.shape)}; one number or a list of them is allowed"
    place = operator_of(node).bias
    bias = graph.constant(node, place) if place is not None else None
    if bias is not None and bias.size != channels and node.op_type == "QLinearConv":
        yield f"its bias has {bias.size} numbers, and it has {channels} output channels"


def _is_channel_first(node: Node) -> bool:
    return node.op_type == "QLinearConv" or (node.op_type == "QGemm" and bool(node.attributes.get("transB", 0)))


def _activations_by_channel(graphs: Sequence[Graph]) -> list[str]:
    """Find activations of written graphs dequantized with several scales, which fused kernels cannot handle."""
    places = []
    for graph in graphs:
        for node in graph.file.nodes:
            if node.op_type == "DequantizeLinear" and node.outputs[0] not in graph.constants:
                scale = graph.constant(node, 1)
                if scale is not None and scale.size > 1:
                    places.append(f"{graph.label(node)}: activations have {scale.size} scales, and may have one")
    return places
