"""The certificate: bounds that make the integers exact everywhere, computed from the file that was written.

It is read back and reduced to its integer operators (QDQ fused as ONNX Runtime fuses it); nothing here knows what the
exporter meant to write. Lines:

    int32        max_k sum(|W_k|) * max(X) + |bias_k| < 2**31     no accumulator overflows
    int16        2 * max(X) * max|W| <= 32767              no vpmaddubsw saturates on x86 without VNNI
    matmul       sum(U_k * X) < 2**24                      MatMulNBits sums integers exactly in float32
    scales       numbers that float32 cannot work with (zero, infinite, below the normal ones) among scales, products
                 of scales, and multipliers: none
    pooling      max(r, 2**-24 / r) < 256                  ONNX Runtime averages with a ratio r from 2**-32 to 256 only
    ties         every result of an addition, product, table or pooling keeps more distance from a tie than float32 errs
    float        no operator that ONNX Runtime executes between input and logits computes in float, but for those of the
                 parts that the network keeps in float: the bound is their number, `worst` counts those that ONNX
                 Runtime executes, and `where` names them all
    weights      the weight codes in the file equal those of the model, whatever layout a pass gave them
    runs         ONNX Runtime loads the file and runs it, with its optimizer and without: numbers of the outputs for an
                 image of noise that differ from the integer reference where they have to equal it (`trial_run`)

Lines `scales`, `pooling` and `runs` say that ONNX Runtime can run the file, which whoever has it can try; the
others, which say that every machine gets the same integers, are stored in the file (`stored_lines`).

`r` is `x_scale / (y_scale * pixels)`. `max(X)` is the largest code that the producer of a tensor can make; after a part
that is kept in float it is 255. Line `matmul` holds for the codes `U` as MatMulNBits stores them, with an offset;
it also requires the constant 127 in every block, no larger code, and scales of 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qil_deploy.errors import CertificateError, QilDeployError
from qil_deploy.integers import (
    INT16_MAX,
    INT32_LIMIT,
    Function,
    Operand,
    added,
    largest_pair,
    largest_sums,
    multiplied,
    pooled,
    tabulated,
)
from qil_deploy.onnx_io import (
    PACKED_MATMULS,
    QUANTIZED_ADDITIONS,
    Node,
    OnnxFile,
    dequantized_codes,
    kept_parts,
    optimized_model,
    read_model,
)
from qil_deploy.reference import SUM_LIMIT, IntegerReference, float_nodes, operator_of, parts_of_executed

from .integer_graph import IntegerGraph, Layer
from .trial_run import Trial, differing_outputs
from .weight_layout import fewest_differences

_TABLES: dict[str, Function] = {"QLinearSigmoid": "sigmoid", "QLinearLeakyRelu": "leaky relu"}
_BELOW_256 = float(np.nextafter(np.float32(256), np.float32(0)))
_SMALLEST_POOL_RATIO = 2.0**-32


@dataclass(frozen=True, kw_only=True)
class CertificateLine:
    """One line: what was bounded, the worst value found, the bound, and where the worst value is."""

    name: str
    worst: float
    bound: float
    where: str


@dataclass(frozen=True, kw_only=True)
class Bounded:
    """Certificate lines of a graph, all but `runs`.

    Attributes:
        lines: all of which hold.
        trial: what ONNX Runtime has to return.
    """

    lines: list[CertificateLine]
    trial: Trial

    def run(self, path: Path) -> list[CertificateLine]:
        """Return all lines of the file that the graph was written to.

        Raises:
            CertificateError: ONNX Runtime cannot run it, or computes something else.
        """
        return [*self.lines, _hold("runs", 0, [differing_outputs(path, self.trial)])]


def certify(path: Path, expected_codes: Mapping[str, NDArray[np.int8]]) -> list[CertificateLine]:
    """Check every line of the certificate on an exported file; arguments and errors are those of `bound`."""
    return bound(read_model(path), expected_codes).run(path)


def bound(model: OnnxFile, expected_codes: Mapping[str, NDArray[np.int8]]) -> Bounded:
    """Check all lines that are computed from a written graph.

    Args:
        model: what was written, with metadata.
        expected_codes: by layer (node) name, `codes * spread` of the model.

    Raises:
        CertificateError: a line fails, naming the node and by how much, or the file is not one that exports write.
    """
    # Before the others: they need the integer reference, which has no float operators.
    float_line = _float_line(model)
    try:
        lines, trial = _integer_lines(model, expected_codes)
    except QilDeployError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise CertificateError(
            f"{model.path} is not a file that export writes: {error}. Export the model again."
        ) from error
    return Bounded(lines=[*lines[:-1], float_line, lines[-1]], trial=trial)


def stored_lines(lines: Sequence[CertificateLine]) -> list[dict[str, Any]]:
    """Return the lines that a file's metadata holds."""
    return [asdict(line) for line in lines if line.name not in ("scales", "pooling", "runs")]


def _integer_lines(
    model: OnnxFile, expected_codes: Mapping[str, NDArray[np.int8]]
) -> tuple[list[CertificateLine], Trial]:
    """Return the lines that bound the file's integers, and the trial of the file in ONNX Runtime."""
    reference = IntegerReference(model)
    graph = IntegerGraph(reference)
    facts = [_measure(layer, expected_codes.get(layer.node.name)) for layer in graph.layers]
    lines = [
        _hold("int32", INT32_LIMIT - 1, [*((fact.accumulator, fact.name) for fact in facts), *_sums(graph)]),
        _hold("int16", INT16_MAX, ((float(fact.pair), fact.name) for fact in facts)),
        _hold("matmul", SUM_LIMIT - 1, _partial_sums(graph)),
        _hold("scales", 0, _unusable_scales(graph)),
        _hold("pooling", _BELOW_256, _pool_ratios(graph)),
        _hold("ties", 1.0, _tie_risks(graph)),
        _hold("weights", 0, _different_codes(facts, expected_codes)),
    ]
    return lines, Trial.of(model, None if kept_parts(model) else reference)


def bound_weights(graph: OnnxFile, expected_codes: Mapping[str, NDArray[np.int8]]) -> Bounded:
    """Check line `weights` on a graph of `paper` placement, whose float parts have no bounds to check.

    Args:
        graph: what was written, with metadata.
        expected_codes: by layer (node) name, the weight codes with their signs.

    Raises:
        CertificateError: a line fails, naming the node and by how much.
    """
    layers = {node.name: node for node in graph.nodes if node.op_type in ("Conv", "Gemm")}

    def different(name: str, expected: NDArray[np.int8]) -> float:
        stored = dequantized_codes(graph, layers[name]) if name in layers else None
        if stored is None or stored.shape != expected.shape:
            return float(expected.size)
        return float(np.count_nonzero(stored != expected))

    weights = _hold("weights", 0, ((different(name, codes), name) for name, codes in expected_codes.items()))
    return Bounded(lines=[weights], trial=Trial.of(graph, None))


def _hold(name: str, bound: float, values: Iterable[tuple[float, str]]) -> CertificateLine:
    """Return the line of the worst value; raise CertificateError if that is above the bound."""
    worst, where = max(values, default=(0.0, ""))
    if worst > bound:
        raise CertificateError(f"certificate line {name!r} fails at {where}: {worst:.10g} is above {bound:.10g}.")
    return CertificateLine(name=name, worst=float(worst), bound=float(bound), where=where if worst else "")


@dataclass(frozen=True, kw_only=True)
class _LayerFacts:
    """Measurements of one layer for the certificate's lines.

    Attributes:
        name: of its node.
        accumulator: largest magnitude.
        pair: largest sum of two products in the kernel.
        different: weights that are not those of the model; all, where it has no such layer.
    """

    name: str
    accumulator: float
    pair: int
    different: int


def _measure(layer: Layer, expected: NDArray[np.int8] | None) -> _LayerFacts:
    """Measure a layer in one pass over its weights."""
    accumulator, factor, different = 0, 0, 0
    same_shape = expected is not None and expected.shape == layer.shape
    for rows, weights in layer.blocks():
        sums = largest_sums(weights, layer.largest_input, layer.bias[rows])
        accumulator, factor = max(accumulator, int(sums.max())), max(factor, int(np.abs(weights).max(initial=0)))
        if expected is not None and same_shape:
            different += int(np.count_nonzero(weights != expected[rows]))
    if expected is not None and not same_shape:
        different = fewest_differences(layer.weights_of(slice(None)), expected.astype(np.int64))
    return _LayerFacts(
        name=layer.node.name,
        accumulator=float(accumulator),
        pair=layer.kernel_pair or largest_pair(layer.largest_input, factor),
        different=different,
    )


def _sums(graph: IntegerGraph) -> Iterable[tuple[float, str]]:
    """Yield the largest sum over positions, of every ReduceSum."""
    for node in graph.nodes:
        if node.op_type == "ReduceSum":
            window = math.prod(graph.shapes[node.inputs[0]]) // math.prod(graph.shapes[node.outputs[0]])
            yield float(window * graph.largest[node.inputs[0]]), node.name


def _partial_sums(graph: IntegerGraph) -> Iterable[tuple[float, str]]:
    """Yield the largest partial sum of every MatMulNBits."""
    for node in graph.nodes:
        if node.op_type in PACKED_MATMULS:
            yield float(graph.matmul(node).partial_sum()), node.name


def _tie_risks(graph: IntegerGraph) -> Iterable[tuple[float, str]]:
    """Yield, for every addition, product, table and pooling, float32's largest error over the distance from a tie."""
    for node in graph.nodes:
        if node.op_type in QUANTIZED_ADDITIONS:
            yield _addition_risk(graph.constants, node), node.name
        elif node.op_type == "QLinearGlobalAveragePool":
            yield _pool_risk(graph, node), node.name
        elif node.op_type == "QLinearMul":
            yield _product_risk(graph.constants, node), node.name
        elif node.op_type in _TABLES:
            yield _table_risk(graph.constants, node), node.name


def _product_risk(constants: Mapping[str, NDArray[Any]], node: Node) -> float:
    a_scale, a_zero, b_scale, b_zero, y_scale, y_zero = (
        float(constants[node.inputs[index]]) for index in (1, 2, 4, 5, 6, 7)
    )
    codes = np.arange(256, dtype=np.float64)
    a, b = Operand(codes, a_zero, a_scale / y_scale), Operand(codes, b_zero, b_scale)
    return multiplied(a, b, y_zero).risk()


def _table_risk(constants: Mapping[str, NDArray[Any]], node: Node) -> float:
    x_scale, x_zero, y_scale, y_zero = (float(constants[node.inputs[index]]) for index in range(1, 5))
    slope = float(node.attributes.get("alpha", 0.0))  # type: ignore[arg-type] # a number, as the reference has seen
    return tabulated(_TABLES[node.op_type], (x_scale, x_zero), (y_scale, y_zero), slope).risk()


def _addition_risk(constants: Mapping[str, NDArray[Any]], node: Node) -> float:
    a_scale, a_zero, b_scale, b_zero, y_scale, y_zero = (
        float(constants[node.inputs[index]]) for index in (1, 2, 4, 5, 6, 7)
    )
    codes = np.arange(256, dtype=np.float64)
    constant = constants.get(node.inputs[3])
    b = codes if constant is None else constant.astype(np.float64).ravel()
    return added(Operand(codes, a_zero, a_scale / y_scale), Operand(b, b_zero, b_scale / y_scale), y_zero).risk()


def _pool_risk(graph: IntegerGraph, node: Node) -> float:
    _, x_zero, _, y_zero = (float(graph.constants[node.inputs[index]]) for index in range(1, 5))
    sums = pooled(_window(graph, node), (0, 255), x_zero, _pool_ratio(graph, node), y_zero)
    return max(some.risk() for some in sums)


def _window(graph: IntegerGraph, node: Node) -> int:
    """Return how many pixels a QLinearGlobalAveragePool averages."""
    return math.prod(graph.shapes[node.inputs[0]][2:])


def _pool_ratio(graph: IntegerGraph, node: Node) -> float:
    """Return `x_scale / (y_scale * pixels)`."""
    x_scale, y_scale = (float(graph.constants[node.inputs[index]]) for index in (1, 3))
    return x_scale / (_window(graph, node) * y_scale)


def _pool_ratios(graph: IntegerGraph) -> Iterable[tuple[float, str]]:
    """Yield the ratio of every global average pooling; instead of one that is too small, a number that is too large."""
    for node in graph.nodes:
        if node.op_type == "QLinearGlobalAveragePool":
            # In float32, as ONNX Runtime checks it.
            x_scale, y_scale = (graph.constants[node.inputs[index]].astype(np.float32) for index in (1, 3))
            ratio = float(x_scale / (y_scale * np.float32(_window(graph, node))))
            yield max(ratio, _SMALLEST_POOL_RATIO / ratio * 256), node.name


def _unusable_scales(graph: IntegerGraph) -> Iterable[tuple[float, str]]:
    """Yield, per operator, the number of scales, given or derived, that float32 cannot handle."""
    for node in graph.nodes:
        scales = [
            graph.constants[node.inputs[grid.scale]]
            for grid in operator_of(node).grids
            if grid.scale < len(node.inputs) and node.inputs[grid.scale]
        ]
        factors = graph.constants.get(node.inputs[1]) if node.op_type == "Mul" else None
        if factors is not None and factors.dtype == np.float32:
            scales = [factors]
        numbers = [scale.ravel() for scale in scales]
        if operator_of(node).is_integer_layer:
            with np.errstate(all="ignore"):  # the result is checked
                product = numbers[0] * numbers[1]
                multipliers = product / numbers[2] if len(numbers) > 2 else product
            # Multipliers near zero do no harm: whatever they multiply, the code is that of zero.
            numbers += [product, np.where(np.isfinite(multipliers), np.float32(1), multipliers)]
        yield float(sum(np.count_nonzero(~_is_normal(number)) for number in numbers)), node.name


def _is_normal(numbers: NDArray[Any]) -> NDArray[np.bool_]:
    magnitudes = np.abs(numbers.astype(np.float32))
    normal: NDArray[np.bool_] = (magnitudes >= np.finfo(np.float32).tiny) & np.isfinite(magnitudes)
    return normal


def _different_codes(
    facts: Sequence[_LayerFacts], expected: Mapping[str, NDArray[np.int8]]
) -> Iterable[tuple[float, str]]:
    """Yield, for every layer, the number of weights that differ from the model's."""
    for name in sorted({fact.name for fact in facts} ^ expected.keys()):
        yield 1.0, f"{name} (a layer of the file or of the model only)"
    for fact in facts:
        yield float(fact.different), fact.name


def _float_line(model: OnnxFile) -> CertificateLine:
    """Return line `float`; raise CertificateError if anything but a float part computes in float."""
    executed = optimized_model(model.path)
    parts = parts_of_executed(executed, model)
    kernels = float_nodes(executed)
    outside = [node for node in kernels if node.outputs[0] not in parts]
    line = _hold("float", 0, [(1.0, f"{node.op_type} {node.name}") for node in outside])
    kept = kept_parts(model)
    if not kept:
        return line
    in_float = {parts[node.outputs[0]] for node in kernels}
    return replace(line, worst=float(len(in_float)), bound=float(len(kept)), where=", ".join(kept))
