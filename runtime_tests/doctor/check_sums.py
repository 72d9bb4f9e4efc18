"""Findings about sums and roundings in the integer kernels that ONNX Runtime executes.

    int16    x86 without VNNI adds two products of a uint8 code and an int8 weight in int16, and saturates
    int32    sums wrap
    ties     additions and average pools rescale in float32; where a result lies closer to a tie than float32 errs,
             the order of operations, which differs between machines, decides the code

The bounds are those of `qil_deploy/integers/bounds.py`, which the certificate of an export uses. Codes are as large as
the producers of a tensor can make them: Clip lowers that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from qil_deploy.integers import INT16_MAX, INT32_LIMIT, Operand, added, largest_pair, largest_sums, pooled
from qil_deploy.onnx_io import QUANTIZED_ADDITIONS, Array, Node
from qil_deploy.reference import Range, operator_of, range_of_result

from .findings import Finding, found
from .graphs import Graph

_CODES: dict[str, Range] = {"uint8": (0, 255), "int8": (-128, 127)}
_POOLS = frozenset({"QLinearAveragePool", "QLinearGlobalAveragePool"})
_MOST_SUMS = 2**24


@dataclass(frozen=True)
class _Layer:
    """Bounds on an integer layer's sums.

    Attributes:
        label: of its node.
        pair: the largest sum of two products that x86 without VNNI adds in int16; 0 where it adds none.
        total: the largest sum.
    """

    label: str
    pair: int
    total: int


def sum_findings(graphs: Sequence[Graph]) -> list[Finding]:
    """Find sums that saturate, overflow or may round differently in executed graphs with types and shapes."""
    layers = [layer for graph in graphs for layer in _layers(graph)]
    return [*_saturation(layers), *_overflow(layers), *_ties(graphs)]


def _saturation(layers: list[_Layer]) -> list[Finding]:
    return found(
        "int16-saturation",
        "inexact",
        [f"{layer.label}: sums up to {layer.pair:,}" for layer in layers if layer.pair > INT16_MAX],
        what=f"sums of two products may exceed {INT16_MAX:,}",
        why="x86 without VNNI adds two products in int16, which saturates: other results, and worse ones, than on "
        "other machines. VNNI and ARM are exact.",
        remedy="If such machines matter, use 7-bit weights (quantize_static: reduce_range=True) or fewer bits of "
        "activations.",
    )


def _overflow(layers: list[_Layer]) -> list[Finding]:
    return found(
        "int32-overflow",
        "inexact",
        [f"{layer.label}: sums up to {layer.total:,}" for layer in layers if layer.total >= INT32_LIMIT],
        what="sums may exceed 2**31 - 1",
        why="Accumulators are int32 and wrap around: a large positive result becomes negative.",
        remedy="Look for biases whose scale is far too small, or give the layer fewer bits.",
    )


def _layers(graph: Graph) -> Iterator[_Layer]:
    ranges = _code_ranges(graph)
    for node in graph.file.nodes:
        if not operator_of(node).is_integer_layer:
            continue
        stored, zero_point = graph.constant(node, 3), graph.scalars(node, [2])
        if stored is None or stored.dtype not in (np.int8, np.uint8) or stored.ndim < 2 or zero_point is None:
            continue
        if stored.size:
            yield _layer(graph, node, stored, ranges.get(node.inputs[0], _whole(graph, node.inputs[0])), zero_point[0])


def _layer(graph: Graph, node: Node, stored: Array, codes: Range, zero_point: float) -> _Layer:
    """Compute the largest sums of a layer with 8-bit weights that reads `codes`."""
    is_convolution = node.op_type == "QLinearConv"
    weights = np.abs(stored.astype(np.int64))
    if not is_convolution and not (node.op_type == "QGemm" and node.attributes.get("transB", 0)):
        weights = np.moveaxis(weights, -1, 0)
    place = operator_of(node).bias
    bias = None if place is None else graph.constant(node, place)
    is_usable = bias is not None and bias.size in (1, len(weights)) and bias.dtype == np.int32
    bias = bias.ravel() if bias is not None and is_usable else np.zeros(1, np.int64)
    # Signed codes are shifted by 128 for the instruction; a depthwise layer has no second product to add.
    shift = 128 if codes[0] < 0 else 0
    adds_pairs = stored.dtype == np.int8 and weights[0].size > math.prod(weights.shape[2:])
    largest_code = max(abs(code - int(zero_point)) for code in codes)
    return _Layer(
        label=graph.label(node),
        pair=largest_pair(codes[1] + shift, int(weights.max(initial=0))) if adds_pairs else 0,
        total=int(largest_sums(weights, largest_code, bias).max(initial=0)),
    )


def _whole(graph: Graph, name: str) -> Range:
    """Return the range of a tensor's type."""
    return _CODES.get(graph.type_of(name), _CODES["uint8"])


def _code_ranges(graph: Graph) -> dict[str, Range]:
    """Return the smallest and largest code that each tensor of 8-bit codes can hold."""
    ranges: dict[str, Range] = {}
    for node in graph.file.nodes:
        for output in node.outputs:
            if (whole := _CODES.get(graph.types.get(output, ""))) is not None:
                read = [ranges.get(name, whole) for name in graph.data_inputs(node)] or [whole]
                ranges[output] = range_of_result(node, read, whole, partial(_scalar, graph, node))
    return ranges


def _scalar(graph: Graph, node: Node, index: int) -> float | None:
    return next(iter(graph.scalars(node, [index]) or ()), None)


def _ties(graphs: Sequence[Graph]) -> list[Finding]:
    additions, pools = [], []
    for graph in graphs:
        for node in graph.file.nodes:
            if node.op_type in QUANTIZED_ADDITIONS and (close := _close_additions(graph, node)):
                additions.append(f"{graph.label(node)}: {close:,} pairs of codes")
            elif node.op_type in _POOLS and (close := _close_pools(graph, node)):
                pools.append(f"{graph.label(node)}: {close:,} sums")
    why = (
        "Results nearer to a tie than float32 errs become one code or the next, depending on the order in which a "
        "machine's kernel multiplies and adds."
    )
    remedy = (
        "If results must be equal everywhere, choose scales whose ratios are p/q with one odd q "
        "(docs/numerics.md, Rescales); if a step more or less does no harm, nothing."
    )
    return [
        *found("addition-ties", "inexact", additions, what="additions may meet ties", why=why, remedy=remedy),
        *found("pool-ties", "inexact", pools, what="average pools may meet ties", why=why, remedy=remedy),
    ]


def _close_additions(graph: Graph, node: Node) -> int:
    """Count pairs of codes whose sum lies nearer to a tie than float32 errs; 0 where scales are not known."""
    numbers = graph.scalars(node, (1, 2, 4, 5, 6, 7))
    if numbers is None or min(numbers[0], numbers[2], numbers[4]) <= 0:
        return 0
    a_scale, a_zero, b_scale, b_zero, y_scale, y_zero = numbers
    low, high = _whole(graph, node.outputs[0])
    a = Operand(_codes(graph, node, 0), a_zero, a_scale / y_scale)
    b = Operand(_codes(graph, node, 3), b_zero, b_scale / y_scale)
    return added(a, b, y_zero).count_near_ties(low - y_zero, high - y_zero)


def _codes(graph: Graph, node: Node, index: int) -> NDArray[np.float64]:
    """Return all codes that an operand of an addition can take."""
    constant = graph.constant(node, index)
    if constant is not None:
        return np.unique(constant).astype(np.float64)
    low, high = _whole(graph, node.inputs[index])
    return np.arange(low, high + 1, dtype=np.float64)


def _close_pools(graph: Graph, node: Node) -> int:
    """Count sums of codes whose mean lies nearer to a tie than float32 errs; 0 where size or scales are not known."""
    numbers, window = graph.scalars(node, (1, 2, 3, 4)), _window(graph, node)
    if numbers is None or window is None or min(numbers[0], numbers[2]) <= 0 or 256 * window > _MOST_SUMS:
        return 0
    x_scale, x_zero, y_scale, y_zero = numbers
    low, high = _whole(graph, node.outputs[0])
    sums = pooled(window, _whole(graph, node.inputs[0]), x_zero, x_scale / (window * y_scale), y_zero)
    return sum(some.count_near_ties(low - y_zero, high - y_zero) for some in sums)


def _window(graph: Graph, node: Node) -> int | None:
    """Return the number of codes in one mean."""
    if node.op_type == "QLinearAveragePool":
        kernel = node.attributes.get("kernel_shape")
        return math.prod(int(size) for size in kernel) if isinstance(kernel, list) else None
    shape = graph.shapes.get(node.inputs[0], ())
    sizes = shape[1:-1] if node.attributes.get("channels_last", 0) else shape[2:]
    fixed = [size for size in sizes if isinstance(size, int) and size > 0]
    return math.prod(fixed) if fixed and len(fixed) == len(sizes) else None
