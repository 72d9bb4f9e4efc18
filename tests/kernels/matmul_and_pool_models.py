"""Files of one LowBitMatMul, or of one LowBitMaxPool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import FunctionProto, GraphProto, ModelProto, TensorProto, helper, numpy_helper

STANDARD, MICROSOFT = helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)
_INTEGER, _INTEGERS = 2, 7  # types of attributes


@dataclass
class PackedProduct:
    """One product with packed weights, [outputs, blocks, block * bits / 8], in the form of exports."""

    packed: NDArray[np.uint8]
    bits: int = 2
    block: int = 128
    level: int = 4
    scale: float = 1.0
    zero_point: int | None = None
    attributes: dict[str, int] = field(default_factory=dict)

    @property
    def columns(self) -> int:
        """The length of a row of the input."""
        return int(self.packed.shape[1]) * self.block

    def model(self) -> ModelProto:
        """Return a file with the node and the function that replaces it."""
        outputs, blocks = self.packed.shape[:2]
        zero_point = (0xAA if self.bits == 2 else 0x88) if self.zero_point is None else self.zero_point
        constants: dict[str, NDArray[Any]] = {
            "B": self.packed,
            "scales": np.full((outputs, blocks), self.scale, np.float32),
            "zero_points": np.full((outputs, -(-blocks * self.bits // 8)), zero_point, np.uint8),
        }
        attributes = {
            "N": outputs, "K": self.columns, "bits": self.bits, "block_size": self.block, "accuracy_level": self.level
        } | self.attributes  # fmt: skip
        node = helper.make_node("LowBitMatMul", ["A", *constants], ["Y"], domain="qil.deploy", **attributes)
        graph = helper.make_graph(
            [node],
            "one",
            [helper.make_tensor_value_info("A", TensorProto.FLOAT, ["rows", "k"])],
            [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["rows", "n"])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        body = _function("LowBitMatMul", "MatMulNBits", MICROSOFT.domain, ["A", *constants], attributes, _INTEGER)
        return _model(graph, body)

    def rows(self, rng: np.random.Generator, count: int, largest: int) -> NDArray[np.float32]:
        """Return random codes up to `largest`, with the constant 127 at the end of every block."""
        a = rng.integers(0, largest + 1, (count, self.columns)).astype(np.float32)
        a[:, self.block - 1 :: self.block] = 127
        return a


def random_product(rng: np.random.Generator, bits: int) -> PackedProduct:
    """Return a product of random shape, some weights of which are the smallest or the largest."""
    block = int(rng.choice([16, 32, 64, 128, 128, 128]))
    shape = (int(rng.integers(1, 90)), int(rng.integers(1, 14)), block * bits // 8)
    packed = rng.integers(0, 256, shape).astype(np.uint8)
    if rng.random() < 0.2:
        packed[rng.integers(shape[0])] = rng.choice([0, 255])
    return PackedProduct(packed, bits, block)


def pool_model(kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int]) -> ModelProto:
    """Return a file of one pool, and the function that replaces it."""
    attributes: dict[str, Any] = {"kernel_shape": list(kernel), "strides": list(strides), "pads": list(pads)}
    node = helper.make_node("LowBitMaxPool", ["x"], ["y"], domain="qil.deploy", **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", "c", "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, ["n", "c", "p", "q"])],
    )
    return _model(graph, _function("LowBitMaxPool", "MaxPool", "", ["x"], attributes, _INTEGERS))


def random_pool(rng: np.random.Generator) -> tuple[ModelProto, NDArray[np.uint8]]:
    """Return a file of one pool of random shape, and an input."""
    kernel = [int(rng.integers(1, 6)) for _ in range(2)]
    strides = [int(rng.choice([1, 2, 2, 3, 5])) for _ in range(2)]
    pads = [int(rng.integers(0, kernel[i % 2])) if rng.random() < 0.5 else 0 for i in range(4)]
    smallest = [max(1, kernel[i] - pads[i] - pads[i + 2]) for i in range(2)]
    size = [each if rng.random() < 0.1 else each + int(rng.integers(0, 60)) for each in smallest]
    shape = (int(rng.integers(1, 4)), int(rng.integers(1, 40)), *size)
    x = rng.integers(0, int(rng.choice([4, 256])), shape).astype(np.uint8)
    return pool_model(kernel, strides, pads), x


def _function(
    name: str, op_type: str, domain: str, inputs: list[str], attributes: Mapping[str, object], kind: int
) -> FunctionProto:
    node = helper.make_node(op_type, inputs, ["result"], domain=domain)
    for each in attributes:
        attribute = node.attribute.add()
        attribute.name = attribute.ref_attr_name = each
        attribute.type = kind
    return helper.make_function(
        "qil.deploy",
        name,
        inputs,
        ["result"],
        [node],
        [STANDARD, MICROSOFT] if domain else [STANDARD],
        list(attributes),
    )


def _model(graph: GraphProto, function: FunctionProto) -> ModelProto:
    opsets = [STANDARD, MICROSOFT, helper.make_opsetid("qil.deploy", 1)]
    return helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=10)
