"""Integer operators, layers, and largest codes of an exported file, for its certificate.

QDQ is fused as ONNX Runtime fuses it, constants are computed, and layers are described relative to the tensor that
their passes' moves start from (`weight_layout`), whichever operators compute them. Float parts of the file are opaque:
one node each, whose codes reach 255, with the shape from ONNX Runtime.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qil_deploy.errors import CertificateError
from qil_deploy.integers import largest_pair
from qil_deploy.onnx_io import (
    KERNEL_CONVOLUTIONS,
    PACKED_MATMULS,
    PART_OPERATOR,
    Node,
    part_shapes,
    read_metadata,
)
from qil_deploy.reference import (
    EXACT_LEVEL,
    LANE_CODE,
    IntegerReference,
    blocks,
    check_blocks,
    check_zero_points,
    find_operator,
    integer,
    largest_codes,
    unpack_blocks,
)

from .weight_layout import MovedInput, follow_moves, undo_convolution, undo_linear

Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One convolution or linear layer, as that of the tensor its moves start from.

    Its weights are codes times spread. For large layers they are made a few output channels at a time, as in int64 they
    would take twice the memory of the float network.

    Attributes:
        node: the operator that multiplies.
        shape: of the weights, [C_out, ...].
        weights_of: returns the weights of some of the output channels.
        bias: [C_out].
        largest_input: largest magnitude that a code contributes, its zero point subtracted or not.
        kernel_pair: largest sum of two products in the kernel, if it multiplies anything but codes and weights; else 0.
    """

    node: Node
    shape: tuple[int, ...]
    weights_of: Callable[[slice], Integers]
    bias: Integers
    largest_input: int
    kernel_pair: int = 0

    def blocks(self) -> Iterator[tuple[slice, Integers]]:
        """Yield blocks of output channels and their weights, until all were yielded."""
        for rows in blocks(self.shape[0], math.prod(self.shape[1:])):
            yield rows, self.weights_of(rows)


class IntegerGraph:
    """The integer operators of a file, its constants, and shape and largest code of every tensor.

    Attributes:
        nodes: in order of execution.
        constants: initializers and what is computed from them.
    """

    def __init__(self, reference: IntegerReference) -> None:
        self.nodes = reference.nodes
        self.constants = reference.constants
        self._producers = {output: node for node in self.nodes for output in node.outputs}
        self._permuted = frozenset(read_metadata(reference.model).get("permuted", ()))
        self._readers: defaultdict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for name in node.inputs:
                self._readers[name].append(node)
        parts = tuple(node.outputs[0] for node in self.nodes if node.op_type == PART_OPERATOR)
        self._part_shapes = part_shapes(reference.model, parts)
        image = reference.model.inputs[0]
        blank = np.zeros((1, *(int(size or 1) for size in (image.shape or ())[1:])), image.dtype)
        self.shapes = self._infer_shapes(image.name, blank)
        self.largest = largest_codes(self.nodes, self.constants)

    def _infer_shapes(self, name: str, blank: NDArray[Any]) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor for one image."""
        tensors = {name: blank}
        for node in self.nodes:
            inputs = [self.constants.get(entry, tensors.get(entry)) if entry else None for entry in node.inputs]
            if node.op_type in PACKED_MATMULS:  # the certificate decides whether the reference may compute it
                result = np.zeros((len(blank), integer(node, "N", 0)), np.float32)
            elif node.op_type == PART_OPERATOR:
                result = np.zeros(self._part_shapes[node.outputs[0]], np.uint8)
            else:
                result = find_operator(node).compute(node, inputs)
            tensors[node.outputs[0]] = result
        return {entry: tensor.shape for entry, tensor in tensors.items()}

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Every convolution and linear layer.

        Raises:
            CertificateError: the operators around a MatMulNBits, or the moves before a layer, compute anything but a
                layer.
        """
        return tuple(self._layers())

    def _layers(self) -> Iterator[Layer]:
        for node in self.nodes:
            if node.op_type in ("QLinearConv", *KERNEL_CONVOLUTIONS):
                yield self._convolution(node, node.inputs[3], self.constants[node.inputs[8]])
            elif node.op_type == "ConvInteger":
                yield self._convolution(node, node.inputs[1], self._added_bias(node))
            elif node.op_type == "QGemm":
                yield self._linear(node)
            elif node.op_type in PACKED_MATMULS:
                yield self.matmul(node).layer

    def _moved(self, node: Node) -> MovedInput:
        return follow_moves(node.inputs[0], self._producers, self.constants, self.shapes, self._permuted)

    def _layer(self, node: Node, weights: NDArray[Any], bias: NDArray[Any]) -> Layer:
        zero_point = int(self.constants[node.inputs[2]])
        return Layer(
            node=node,
            shape=weights.shape,
            weights_of=lambda rows: weights[rows].astype(np.int64),
            bias=bias.astype(np.int64),
            largest_input=max(self.largest.get(node.inputs[0], 255), zero_point),
        )

    def _convolution(self, node: Node, name: str, bias: NDArray[Any]) -> Layer:
        weights, moved = self.constants[name], self._moved(node)
        if not moved.is_source:
            zero_point = int(self.constants[node.inputs[2]])
            weights = undo_convolution(node, weights.astype(np.int64), moved, zero_point)
        return self._layer(node, weights, bias)

    def _added_bias(self, node: Node) -> NDArray[Any]:
        """Return the bias that is added to the sums of a ConvInteger, [C_out]."""
        readers = self._readers[node.outputs[0]]
        bias = self.constants.get(readers[0].inputs[1]) if [r.op_type for r in readers] == ["Add"] else None
        if bias is None or bias.dtype != np.int32 or bias.ndim != 4 or bias.size != bias.shape[1]:
            raise CertificateError(
                f"certificate line 'int32' fails at {node.name}: something else than an addition of one int32 constant "
                "per channel reads its sums."
            )
        return bias.ravel()

    def _linear(self, node: Node) -> Layer:
        weights, moved = self.constants[node.inputs[3]], self._moved(node)
        weights = weights if node.attributes.get("transB", 0) else weights.T
        layer = self._layer(node, weights, self.constants[node.inputs[6]])
        if moved.is_pixels:
            return replace(
                layer, shape=(*weights.shape, 1, 1), weights_of=lambda rows: layer.weights_of(rows)[..., None, None]
            )
        if moved.is_source:
            return layer
        return replace(
            layer,
            shape=(len(weights), math.prod(moved.shape)),
            weights_of=lambda rows: undo_linear(node, layer.weights_of(rows), moved),
        )

    def matmul(self, node: Node) -> MatMul:
        """Return the computation of a MatMulNBits and the operators after it.

        Raises:
            CertificateError: they are not those of a linear layer on integers.
        """
        shape = (integer(node, "N", 0), integer(node, "K", 0))
        bits, block = integer(node, "bits", 0), integer(node, "block_size", 0)
        packed = self.constants[node.inputs[1]]
        check_blocks(packed, shape, bits, block)
        blocks = shape[1] // block
        zero_points = self.constants.get(node.inputs[3]) if len(node.inputs) > 3 else None
        try:
            check_zero_points(zero_points, shape[0], blocks, bits)
        except ValueError as error:
            raise _refusal(node, str(error)) from error
        moved = self._moved(node)
        spread, bias = self._spread_and_bias(node, shape[0])

        def stored(rows: slice) -> Integers:
            part = packed[rows]
            return unpack_blocks(part, (len(part), shape[1]), bits, block).reshape(len(part), -1).astype(np.int64)

        layer = Layer(
            node=node,
            shape=(shape[0], math.prod(moved.shape)),
            weights_of=lambda rows: undo_linear(node, stored(rows), moved) * spread[rows, None],
            bias=bias,
            largest_input=self.largest.get(moved.source, 255),
            kernel_pair=largest_pair(LANE_CODE, 2**bits - 1),
        )
        return MatMul(
            layer=layer,
            stored=stored,
            offset=2 ** (bits - 1),
            constants=np.where(moved.positions < 0, -1 - moved.positions, -1).reshape(blocks, block),
            scales=self.constants[node.inputs[2]],
            level=integer(node, "accuracy_level", 0),
        )

    def _spread_and_bias(self, node: Node, outputs: int) -> tuple[Integers, Integers]:
        """Follow MatMulNBits -> Cast(int32) [-> Mul(spread)] -> Add(bias)."""
        spread = np.ones(outputs, np.int64)
        values = self._only_reader(self._only_reader(node, "Cast"))
        if values.op_type == "Mul":
            spread = self._int32(values, outputs)
            values = self._only_reader(values, "Add")
        if values.op_type != "Add":
            raise _refusal(node, f"{values.op_type} reads its integers, and not the addition of a bias")
        return spread, self._int32(values, outputs)

    def _only_reader(self, node: Node, op_type: str | None = None) -> Node:
        readers = self._readers[node.outputs[0]]
        if len(readers) != 1 or op_type not in (None, readers[0].op_type):
            found = ", ".join(reader.op_type for reader in readers) or "nothing"
            raise _refusal(node, f"{found} reads {node.outputs[0]!r}, and not one {op_type or 'operator'}")
        return readers[0]

    def _int32(self, node: Node, outputs: int) -> Integers:
        constant = self.constants.get(node.inputs[1])
        if constant is None or constant.dtype != np.int32:
            raise _refusal(node, "its second operand is no int32 constant")
        return np.broadcast_to(constant.astype(np.int64).ravel(), (outputs,))


@dataclass(frozen=True, kw_only=True)
class MatMul:
    """A linear layer as MatMulNBits.

    Attributes:
        layer: the layer.
        stored: returns the codes of some of the output channels, [rows, blocks * block].
        offset: what is added to them in storage, 2**(bits - 1): there they are 0 to 2**bits - 1.
        constants: [blocks, block], the constant at each place, -1 for codes.
        scales: one per output and block.
        level: accuracy level.
    """

    layer: Layer
    stored: Callable[[slice], Integers]
    offset: int
    constants: Integers
    scales: NDArray[Any]
    level: int

    def partial_sum(self) -> int:
        """Return the largest partial sum of the kernel, of stored codes or of their offsets.

        Raises:
            CertificateError: the kernel would round: a block without the constant 127, a larger code, or a scale other
                than 1.
        """
        node, largest = self.layer.node, np.where(self.constants < 0, self.layer.largest_input, self.constants)
        missing = np.flatnonzero(~(self.constants == LANE_CODE).any(axis=1))
        if missing.size:
            raise _refusal(node, f"block {missing[0]} of {len(self.constants)} has no constant {LANE_CODE}")
        if largest.max() > LANE_CODE:
            raise _refusal(node, f"its input reaches {largest.max()}, above {LANE_CODE}")
        if np.any(self.scales != 1):
            raise _refusal(node, f"{np.count_nonzero(self.scales != 1)} of its scales are not 1")
        if self.level != EXACT_LEVEL:
            raise _refusal(node, f"its accuracy_level is {self.level}, not {EXACT_LEVEL}")
        inputs = largest.ravel().astype(np.float64)  # whose sums are exact, and quick
        sums = [
            ((self.stored(rows) + self.offset) @ inputs).max(initial=0.0)
            for rows in blocks(self.layer.shape[0], largest.size)
        ]
        return int(max(*sums, self.offset * largest.sum()))


def _refusal(node: Node, reason: str) -> CertificateError:
    return CertificateError(f"certificate line 'matmul' fails at {node.name}: {reason}.")
