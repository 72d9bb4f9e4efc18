"""The certificate: bounds that make the integers exact everywhere, computed from the file that was written.

The file is read back and reduced to its integer operators (QDQ fused as ONNX Runtime fuses it); nothing here knows
what the exporter meant to write. Lines:

    int32        max_k sum(|W_k|) * max(X) + |bias_k| < 2**31     no accumulator overflows
    int16        2 * max(X) * max|W| <= 32767              no vpmaddubsw saturates on x86 without VNNI
    ties         every result of an addition or pooling keeps more distance from a tie than float32 can err
    float        no operator that ONNX Runtime executes between input and logits computes in float
    weights      the weight codes in the file equal those of the model

`max(X)` is the largest code that the producer of a tensor can make.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qil_deploy.config import INT16_MAX
from qil_deploy.errors import CertificateError
from qil_deploy.executed_kernels import executed_operators
from qil_deploy.onnx_file import Node, read_model
from qil_deploy.ratios import rounding_error_bound
from qil_deploy.reference import IntegerReference

INT32_LIMIT = 2**31
_POOLS = ("QLinearGlobalAveragePool", "QLinearAveragePool")
# Operators that compute on codes or move them; everything else between input and logits counts as float.
_INTEGER_OPERATORS = frozenset(
    {
        "QLinearConv",
        "QGemm",
        "QLinearAdd",
        "QLinearGlobalAveragePool",
        "Clip",
        "MaxPool",
        "NhwcMaxPool",  # what ONNX Runtime makes of MaxPool between convolutions
        "Concat",
        "Resize",
        "Flatten",
        "Reshape",
        "Transpose",
        # Where a requantization's constant is read by tensors of two ranks, one of them transposed by the optimizer.
        "Squeeze",
        "Unsqueeze",
        "QuantizeLinear",
    }
)


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
        CertificateError: a line fails, naming the node and by how much.
    """
    # Before the others: they need the integer reference, which has no float operators.
    float_line = _hold("float", 0, _float_kernels(path))
    graph = _IntegerGraph(IntegerReference(read_model(path)))
    return [
        _hold("int32", INT32_LIMIT - 1, graph.accumulators()),
        _hold("int16", INT16_MAX, graph.products()),
        _hold("ties", 1.0, graph.tie_risks()),
        float_line,
        _hold("weights", 0, graph.different_codes(expected_codes)),
    ]


def _hold(name: str, bound: float, values: Iterable[tuple[float, str]]) -> CertificateLine:
    """Return the line of the worst value; raise CertificateError if that is above the bound."""
    worst, where = max(values, default=(0.0, ""))
    if worst > bound:
        raise CertificateError(f"certificate line {name!r} fails at {where}: {worst:.10g} is above {bound:.10g}.")
    return CertificateLine(name=name, worst=float(worst), bound=float(bound), where=where if worst else "")


class _IntegerGraph:
    """The integer operators of a file, its constants, and shape and largest code of every tensor."""

    def __init__(self, reference: IntegerReference) -> None:
        self.nodes = reference.nodes
        self.constants = reference.constants
        self.shapes = {name: array.shape for name, array in reference.run_all(_blank_image(reference)).items()}
        self.largest: dict[str, int] = {}
        for node in self.nodes:
            source = max(self.largest.get(name, 255) for name in node.inputs[: _joined_inputs(node)])
            keeps = node.op_type in ("MaxPool", "Resize", "Concat", "Flatten", "Reshape", "Identity")
            limit = int(self.constants[node.inputs[2]]) if node.op_type == "Clip" else 255
            self.largest[node.outputs[0]] = source if keeps else limit

    def _layers(self) -> Iterable[tuple[Node, NDArray[np.int64], NDArray[np.int64]]]:
        """Yield node, weights [C_out, ...] and bias [C_out] of every convolution and linear layer."""
        for node in self.nodes:
            if node.op_type not in ("QLinearConv", "QGemm"):
                continue
            weight = self.constants[node.inputs[3]].astype(np.int64)
            if node.op_type == "QGemm" and not node.attributes.get("transB", 0):
                weight = weight.T
            bias_at = 8 if node.op_type == "QLinearConv" else 6
            bias = self.constants[node.inputs[bias_at]].astype(np.int64)
            yield node, weight.reshape(len(weight), -1), bias

    def _largest_input(self, node: Node) -> int:
        """Largest magnitude that a code of the input contributes, its zero point taken off or not."""
        zero_point = int(self.constants[node.inputs[2]])
        return max(self.largest.get(node.inputs[0], 255), zero_point)

    def accumulators(self) -> Iterable[tuple[float, str]]:
        """Yield the largest accumulator of every layer."""
        for node, weight, bias in self._layers():
            sums = np.abs(weight).sum(1) * self._largest_input(node) + np.abs(bias)
            yield float(sums.max()), node.name

    def products(self) -> Iterable[tuple[float, str]]:
        """Yield the largest sum of two products of every layer."""
        for node, weight, _ in self._layers():
            yield float(2 * self._largest_input(node) * np.abs(weight).max()), node.name

    def tie_risks(self) -> Iterable[tuple[float, str]]:
        """Yield, for every addition and pooling, float32's largest error over the smallest distance from a tie."""
        for node in self.nodes:
            if node.op_type == "QLinearAdd":
                yield self._addition_risk(node), node.name
            elif node.op_type in _POOLS:
                yield self._pool_risk(node), node.name

    def _addition_risk(self, node: Node) -> float:
        a_scale, a_zero, b_scale, b_zero, y_scale, y_zero = (
            float(self.constants[node.inputs[index]]) for index in (1, 2, 4, 5, 6, 7)
        )
        codes_a = np.arange(256, dtype=np.float64)
        constant = self.constants.get(node.inputs[3])
        codes_b = codes_a if constant is None else constant.astype(np.float64).ravel()
        ratio_a, ratio_b = a_scale / y_scale, b_scale / y_scale
        results = (codes_a - a_zero)[:, None] * ratio_a + (codes_b - b_zero)[None] * ratio_b
        terms = [(255 + a_zero) * ratio_a, (codes_b.max() + b_zero) * ratio_b, y_zero]
        return _risk(results, terms)

    def _pool_risk(self, node: Node) -> float:
        x_scale, x_zero, y_scale, y_zero = (float(self.constants[node.inputs[index]]) for index in range(1, 5))
        window = self._window(node)
        sums = np.arange(-window * x_zero, window * (255 - x_zero) + 1, dtype=np.float64)
        ratio = x_scale / (window * y_scale)
        return _risk(sums * ratio, [255 * window * ratio, y_zero])

    def _window(self, node: Node) -> int:
        """Return how many codes a pooling averages."""
        if node.op_type == "QLinearAveragePool":
            return int(np.prod(np.asarray(node.attributes["kernel_shape"])))
        height, width = self.shapes[node.inputs[0]][2:]
        return int(height * width)

    def different_codes(self, expected: Mapping[str, NDArray[np.int8]]) -> Iterable[tuple[float, str]]:
        """Yield, for every layer, how many weights differ from the model's."""
        found = {node.name: (node, weight) for node, weight, _ in self._layers()}
        for name in sorted(found.keys() ^ expected.keys()):
            yield 1.0, f"{name} (a layer of the file or of the model only)"
        for name in found.keys() & expected.keys():
            _, weight = found[name]
            yield float((weight != expected[name].reshape(len(weight), -1)).sum()), name


def _joined_inputs(node: Node) -> int:
    """Return how many inputs of a node are data."""
    return len(node.inputs) if node.op_type == "Concat" else 1


def _blank_image(reference: IntegerReference) -> NDArray[Any]:
    image = reference.model.inputs[0]
    sizes = [size if isinstance(size, int) else 1 for size in image.shape or ()]
    return np.zeros(sizes, np.dtype(image.dtype))


def _float_kernels(path: Path) -> Iterable[tuple[float, str]]:
    """Yield 1 for every executed operator that computes in float, 0 for each other."""
    for op_type, name in executed_operators(path):
        yield float(op_type not in _INTEGER_OPERATORS), f"{op_type} {name}"


def _risk(results: NDArray[np.float64], terms: list[float]) -> float:
    """Largest float32 error over the smallest distance from a tie, among results that do not saturate anyway."""
    distances = np.abs(results - np.floor(results) - 0.5)
    inside = distances[(results > -256.5) & (results < 256.5)]
    return rounding_error_bound(terms) / max(float(inside.min(initial=0.5)), 1e-300)
