"""Rewrite a QDQ graph to the integer operators that ONNX Runtime fuses it to.

Patterns (Q is QuantizeLinear, DQ is DequantizeLinear, each with one scale per tensor unless said):

- DQ(x), DQ(w, per output channel), DQ(bias) -> Conv -> Q      becomes QLinearConv
- DQ(a), DQ(b, per output), DQ(bias) -> Gemm [-> Q]            becomes QGemm, without y_scale if no Q follows;
  the DQ of a and b need explicit zero points, or ONNX Runtime leaves the Gemm in float32
- DQ(a), DQ(b) -> Add -> Q                                     becomes QLinearAdd
- DQ(x) -> AveragePool or GlobalAveragePool -> Q               becomes the QLinear operator of that name
- DQ(x) -> Reshape, Identity or MaxPool                        becomes the same operator on codes, then DQ
  (ONNX Runtime does not move a Flatten: it has to stand before the DQ)

The last one is exact because DQ is monotonic and elementwise. In the others the float operator is replaced by
integer arithmetic, where a bias is taken as the integer it is stored as; that is the same value only if the
bias has the scale x_scale * w_scale[k], which is checked. A float operator outside these patterns stays, and
the evaluator refuses it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from qil_deploy.onnx_io import Array, Node

from .operator_lookup import operator_of
from .operators import OPERATORS


def fuse_qdq(nodes: Iterable[Node], outputs: Iterable[str], constants: Mapping[str, Array]) -> tuple[Node, ...]:
    """Return the nodes of an equivalent graph of integer operators, without those that fusion leaves unused.

    Args:
        nodes: the graph in topological order.
        outputs: names of the graph's outputs.
        constants: initializers by name, to compare bias scales.

    Raises:
        ValueError: what would not be the same in integers: a bias or an axis off the pattern, or a Gemm that
            ONNX Runtime would not fuse; or an operator without inputs that it needs.
    """
    nodes = tuple(nodes)
    for node in nodes:
        fewest = operator_of(node).least_inputs
        if len(node.inputs) < fewest:
            raise ValueError(
                f"{node.name or node.outputs[0]!r} ({node.op_type}) has {len(node.inputs)} inputs of {fewest}"
            )
    graph = _Graph.of(_sink_dequantize(nodes), tuple(outputs), constants)
    if not any(node.op_type == "DequantizeLinear" for node in graph.nodes):
        return graph.nodes
    # What was unused before belongs to no pattern; ONNX Runtime runs it, so it is checked.
    used = {id(node) for node in _reaching(nodes, graph.outputs)}
    idle = [name for node in nodes if id(node) not in used for name in node.outputs]
    return _reaching([graph.fuse(node) for node in graph.nodes], (*graph.outputs, *idle))


def _sink_dequantize(nodes: Iterable[Node]) -> tuple[Node, ...]:
    """Move every DQ after the operators that only move codes."""
    moved: list[Node] = []
    dequantized: dict[str, Node] = {}
    for node in nodes:
        source = dequantized.get(node.inputs[0]) if operator_of(node).sinks and node.inputs else None
        sunk = [node] if source is None else _swap(source, node)
        moved += sunk
        if sunk[-1].op_type == "DequantizeLinear":
            dequantized[node.outputs[0]] = sunk[-1]
    return tuple(moved)


def _swap(dequantize: Node, mover: Node) -> list[Node]:
    """Turn DQ -> mover into mover -> DQ, with the same output."""
    codes = f"{mover.outputs[0]}_codes"
    return [
        replace(mover, inputs=(dequantize.inputs[0], *mover.inputs[1:]), outputs=(codes,)),
        replace(
            dequantize,
            name=f"{mover.name}_dequantize",
            inputs=(codes, *dequantize.inputs[1:]),
            outputs=mover.outputs,
        ),
    ]


def _reaching(nodes: Iterable[Node], outputs: Iterable[str]) -> tuple[Node, ...]:
    """Return the nodes from which some outputs are computed."""
    used = set(outputs)
    kept: list[Node] = []
    for node in reversed(tuple(nodes)):
        if used.intersection(node.outputs):
            kept.append(node)
            used.update(node.inputs)
    return tuple(reversed(kept))


@dataclass(frozen=True)
class _Graph:
    """Nodes, indexed by the tensors they make and read."""

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Array]
    producers: Mapping[str, Node]
    uses: Mapping[str, int]
    readers: Mapping[str, list[Node]]

    @classmethod
    def of(cls, nodes: tuple[Node, ...], outputs: tuple[str, ...], constants: Mapping[str, Array]) -> _Graph:
        readers: dict[str, list[Node]] = defaultdict(list)
        for node in nodes:
            for name in dict.fromkeys(node.inputs):
                readers[name].append(node)
        return cls(
            nodes=nodes,
            outputs=outputs,
            constants=constants,
            producers={output: node for node in nodes for output in node.outputs},
            uses=Counter([name for node in nodes for name in node.inputs] + list(outputs)),
            readers=readers,
        )

    def fuse(self, node: Node) -> Node:
        """Return the integer operator that ends at this node, or the node itself."""
        if node.op_type == "Gemm" and not self._feeds_one_quantize(node):
            return self._fuse_matrix(node, "QGemm", quantize=None) or node
        source = self.producers.get(node.inputs[0]) if node.op_type == "QuantizeLinear" else None
        if source is None or self.uses[node.inputs[0]] != 1:
            return node
        kernel = OPERATORS.get(operator_of(source).fused_to)
        if source.domain or kernel is None or not kernel.is_executed or kernel.result is None:
            return node
        fuse = self._fuse_elementwise if kernel.weights is None else self._fuse_matrix
        return fuse(source, kernel.name, node) or node

    def _feeds_one_quantize(self, node: Node) -> bool:
        output = node.outputs[0]
        users = self.readers.get(output, [])
        return self.uses[output] == 1 and len(users) == 1 and users[0].op_type == "QuantizeLinear"

    def _dequantize(self, name: str) -> Node | None:
        """Return the DQ that produces a tensor."""
        node = self.producers.get(name)
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def _fuse_elementwise(self, source: Node, op_type: str, quantize: Node) -> Node | None:
        dequantized = [self._dequantize(name) for name in source.inputs]
        inputs: list[str] = []
        for node in dequantized:
            if node is None:
                return None
            inputs += _parameters(node)
        return Node(
            op_type=op_type,
            domain=OPERATORS[op_type].domain,
            name=source.name,
            inputs=(*inputs, *_parameters(quantize)[1:]),
            outputs=quantize.outputs,
            attributes=source.attributes,
        )

    def _fuse_matrix(self, source: Node, op_type: str, quantize: Node | None) -> Node | None:
        """Fuse a Conv or Gemm, whose inputs are data, weights and perhaps a bias."""
        dequantized = [self._dequantize(name) for name in source.inputs if name]
        if len(dequantized) < 2 or None in dequantized:
            return None
        data, weights, *biases = [node for node in dequantized if node is not None]
        if op_type == "QGemm" and not all(_parameters(node)[2] for node in (data, weights)):
            raise ValueError(
                f"the data and weights of {source.name!r} need explicit zero points, without which ONNX "
                "Runtime does not fuse a Gemm and computes it in float32"
            )
        transposed = op_type == "QLinearConv" or source.attributes.get("transB", 0) == 1
        self._check_axis(source, weights, 0 if transposed else 1)
        bias = ""
        if biases:
            self._check_bias(source, data, weights, biases[0])
            bias = biases[0].inputs[0]
        output = _parameters(quantize)[1:] if quantize else []
        operands = [*_parameters(data), *_parameters(weights)]
        return Node(
            op_type=op_type,
            domain=OPERATORS[op_type].domain,
            name=source.name,
            inputs=tuple([*operands, *output, bias] if op_type == "QLinearConv" else [*operands, bias, *output]),
            outputs=(quantize or source).outputs,
            attributes=source.attributes,
        )

    def _constant(self, name: str, what: str) -> Array:
        if name not in self.constants:
            raise ValueError(f"{what} {name!r} is computed; it must be an initializer")
        return self.constants[name]

    def _check_axis(self, source: Node, weights: Node, axis: int) -> None:
        scale = self._constant(weights.inputs[1], "the weight scale")
        found = weights.attributes.get("axis", 1)
        if scale.size > 1 and found != axis:
            raise ValueError(f"the weights of {source.name!r} are scaled along axis {found}; it must be {axis}")

    def _check_bias(self, source: Node, data: Node, weights: Node, bias: Node) -> None:
        """Require the scale float32(x_scale * w_scale) and no zero point, so that integers can be added."""
        product = self._constant(data.inputs[1], "the scale").astype(np.float32) * self._constant(
            weights.inputs[1], "the weight scale"
        )
        scale = self._constant(bias.inputs[1], "the bias scale")
        if scale.size not in (1, product.size) or not np.all(scale.ravel() == product.ravel()):
            raise ValueError(f"the bias of {source.name!r} is not scaled by its input's scale times its weights' scale")
        if scale.size > 1 and bias.attributes.get("axis", 1) not in (0, -1):
            raise ValueError(f"the bias of {source.name!r} is not scaled along axis 0")
        zero_point = bias.inputs[2] if len(bias.inputs) > 2 else ""
        if zero_point and self._constant(zero_point, "the bias zero point").any():
            raise ValueError(f"the bias of {source.name!r} has a zero point; it must have none")


def _parameters(node: Node) -> list[str]:
    """Return tensor, scale and zero point of a Q or DQ; '' for an omitted zero point."""
    return [*node.inputs[:2], node.inputs[2] if len(node.inputs) > 2 else ""]
