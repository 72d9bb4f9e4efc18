"""The certificate: bounds that make the integers exact everywhere, computed from the file that was written.

The file is read back and reduced to its integer operators (QDQ fused as ONNX Runtime fuses it); nothing here knows
what the exporter meant to write. Lines:

    int32        max_k sum(|W_k|) * max(X) + |bias_k| < 2**31     no accumulator overflows
    int16        2 * max(X) * max|W| <= 32767              no vpmaddubsw saturates on x86 without VNNI
    matmul       sum(U_k * X) < 2**24                      MatMulNBits sums integers exactly in float32
    ties         every result of an addition or pooling keeps more distance from a tie than float32 can err
    float        no operator that ONNX Runtime executes between input and logits computes in float, but for those of the
                 parts that the network keeps in float: the bound is their number, `worst` counts those that ONNX
                 Runtime executes, and `where` names them all
    weights      the weight codes in the file equal those of the model, whatever layout a pass gave them

`max(X)` is the largest code that the producer of a tensor can make; behind a part that is kept in float it is 255. Line
`matmul` holds for the codes `U` as MatMulNBits stores them, with an offset; it also wants the constant 127 in every
block, no larger code, and scales of 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qil_deploy.config import INT16_MAX
from qil_deploy.dequantized_weights import dequantized_codes
from qil_deploy.errors import CertificateError, QilDeployError
from qil_deploy.executed_kernels import float_nodes, optimized_model
from qil_deploy.float_parts import kept_parts, parts_of_executed
from qil_deploy.onnx_file import Node, read_model
from qil_deploy.ratios import rounding_error_bound
from qil_deploy.reference import IntegerReference
from qil_deploy.reference.matmul_nbits import SUM_LIMIT

from .integer_graph import IntegerGraph
from .weight_layout import fewest_differences

INT32_LIMIT = 2**31


@dataclass(frozen=True, kw_only=True)
class CertificateLine:
    """One line: what was bounded, the worst value found, the bound, and where the worst value is."""

    name: str
    worst: float
    bound: float
    where: str


def certify(path: Path, expected_codes: Mapping[str, NDArray[np.int8]]) -> list[CertificateLine]:
    """Check every line of the certificate on a written file.

    Args:
        path: the exported ONNX file.
        expected_codes: by layer (node) name, `codes * spread` of the model.

    Returns:
        The lines, all of which hold.

    Raises:
        CertificateError: a line fails, naming the node and by how much, or the file holds what no export writes.
    """
    # Before the others: they need the integer reference, which has no float operators.
    float_line = _float_line(path)
    try:
        graph = IntegerGraph(IntegerReference(read_model(path)))
        return [
            _hold("int32", INT32_LIMIT - 1, _accumulators(graph)),
            _hold("int16", INT16_MAX, _products(graph)),
            _hold("matmul", SUM_LIMIT - 1, _partial_sums(graph)),
            _hold("ties", 1.0, _tie_risks(graph)),
            float_line,
            _hold("weights", 0, _different_codes(graph, expected_codes)),
        ]
    except QilDeployError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise CertificateError(f"{path} holds what no export writes: {error}. Export the model again.") from error


def certify_weights(path: Path, expected_codes: Mapping[str, NDArray[np.int8]]) -> list[CertificateLine]:
    """Check the line `weights` on a file of `paper` placement, whose float parts have no bounds to check.

    Args:
        path: the exported ONNX file.
        expected_codes: by layer (node) name, the weight codes with their signs.

    Raises:
        CertificateError: the line fails, naming the node and by how much.
    """
    graph = read_model(path)
    layers = {node.name: node for node in graph.nodes if node.op_type in ("Conv", "Gemm")}

    def different(name: str, expected: NDArray[np.int8]) -> float:
        stored = dequantized_codes(graph, layers[name]) if name in layers else None
        if stored is None or stored.shape != expected.shape:
            return float(expected.size)
        return float(np.count_nonzero(stored != expected))

    return [_hold("weights", 0, ((different(name, codes), name) for name, codes in expected_codes.items()))]


def _hold(name: str, bound: float, values: Iterable[tuple[float, str]]) -> CertificateLine:
    """Return the line of the worst value; raise CertificateError if that is above the bound."""
    worst, where = max(values, default=(0.0, ""))
    if worst > bound:
        raise CertificateError(f"certificate line {name!r} fails at {where}: {worst:.10g} is above {bound:.10g}.")
    return CertificateLine(name=name, worst=float(worst), bound=float(bound), where=where if worst else "")


def _accumulators(graph: IntegerGraph) -> Iterable[tuple[float, str]]:
    """Yield the largest accumulator of every layer and every sum over positions."""
    for layer in graph.layers:
        sums = np.abs(layer.weights).reshape(len(layer.weights), -1).sum(1) * layer.largest_input + np.abs(layer.bias)
        yield float(sums.max()), layer.node.name
    for node in graph.nodes:
        if node.op_type == "ReduceSum":
            window = math.prod(graph.shapes[node.inputs[0]]) // math.prod(graph.shapes[node.outputs[0]])
            yield float(window * graph.largest[node.inputs[0]]), node.name


def _products(graph: IntegerGraph) -> Iterable[tuple[float, str]]:
    """Yield the largest sum of two products of every layer."""
    for layer in graph.layers:
        yield float(2 * layer.largest_product), layer.node.name


def _partial_sums(graph: IntegerGraph) -> Iterable[tuple[float, str]]:
    """Yield the largest partial sum of every MatMulNBits."""
    for node in graph.nodes:
        if node.op_type == "MatMulNBits":
            yield float(graph.matmul(node).partial_sum()), node.name


def _tie_risks(graph: IntegerGraph) -> Iterable[tuple[float, str]]:
    """Yield, for every addition and pooling, float32's largest error over the smallest distance from a tie."""
    for node in graph.nodes:
        if node.op_type == "QLinearAdd":
            yield _addition_risk(graph.constants, node), node.name
        elif node.op_type == "QLinearGlobalAveragePool":
            yield _pool_risk(graph, node), node.name


def _addition_risk(constants: Mapping[str, NDArray[Any]], node: Node) -> float:
    a_scale, a_zero, b_scale, b_zero, y_scale, y_zero = (
        float(constants[node.inputs[index]]) for index in (1, 2, 4, 5, 6, 7)
    )
    codes_a = np.arange(256, dtype=np.float64)
    constant = constants.get(node.inputs[3])
    codes_b = codes_a if constant is None else constant.astype(np.float64).ravel()
    ratio_a, ratio_b = a_scale / y_scale, b_scale / y_scale
    results = (codes_a - a_zero)[:, None] * ratio_a + (codes_b - b_zero)[None] * ratio_b
    terms = [(255 + a_zero) * ratio_a, (codes_b.max() + b_zero) * ratio_b, y_zero]
    return _risk(results, terms)


def _pool_risk(graph: IntegerGraph, node: Node) -> float:
    x_scale, x_zero, y_scale, y_zero = (float(graph.constants[node.inputs[index]]) for index in range(1, 5))
    window = math.prod(graph.shapes[node.inputs[0]][2:])
    sums = np.arange(-window * x_zero, window * (255 - x_zero) + 1, dtype=np.float64)
    ratio = x_scale / (window * y_scale)
    return _risk(sums * ratio, [255 * window * ratio, y_zero])


def _different_codes(graph: IntegerGraph, expected: Mapping[str, NDArray[np.int8]]) -> Iterable[tuple[float, str]]:
    """Yield, for every layer, how many weights differ from the model's."""
    found = {layer.node.name: layer.weights for layer in graph.layers}
    for name in sorted(found.keys() ^ expected.keys()):
        yield 1.0, f"{name} (a layer of the file or of the model only)"
    for name in found.keys() & expected.keys():
        yield float(fewest_differences(found[name], expected[name].astype(np.int64))), name


def _float_line(path: Path) -> CertificateLine:
    """Return line `float`; raise CertificateError if anything but what is kept in float computes in float."""
    model, executed = read_model(path), optimized_model(path)
    parts = parts_of_executed(executed, model)
    kernels = float_nodes(executed)
    outside = [node for node in kernels if node.outputs[0] not in parts]
    line = _hold("float", 0, [(1.0, f"{node.op_type} {node.name}") for node in outside])
    kept = kept_parts(model)
    if not kept:
        return line
    in_float = {parts[node.outputs[0]] for node in kernels}
    return replace(line, worst=float(len(in_float)), bound=float(len(kept)), where=", ".join(kept))


def _risk(results: NDArray[np.float64], terms: list[float]) -> float:
    """Largest float32 error over the smallest distance from a tie, among results that do not saturate anyway."""
    distances = np.abs(results - np.floor(results) - 0.5)
    inside = distances[(results > -256.5) & (results < 256.5)]
    return rounding_error_bound(terms) / max(float(inside.min(initial=0.5)), 1e-300)
