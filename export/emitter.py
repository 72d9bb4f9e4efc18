"""Build an ONNX graph node by node: constants become initializers, equal scalars are stored once.

A tensor's name says which codes it holds. Metadata, golden vectors and comparisons find tensors by the names of the
network's modules, so these names are never left to chance: anything else a graph needs takes a free name.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

QIL_DOMAIN = "qil"
MICROSOFT_DOMAIN = "com.microsoft"

Bits = tuple[str, tuple[int, ...], bytes]


class Emitter:
    """Collects the nodes and initializers of a graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self._shared: dict[Bits, ir.Value] = {}

    def constant(self, array: NDArray[Any] | np.generic, name: str) -> ir.Value:
        """Return an initializer; scalars, and vectors of zeros, share one where every bit is equal.

        A shared one is named after its value, with a number after it if another has that name: 0.0 and -0.0, or
        NaNs of different bits.
        """
        array = np.asarray(array)
        if not is_shared(array):
            return self.tensor(ir.tensor(array, name=name))
        key = bits_of(array)
        if key not in self._shared:
            self._shared[key] = self.tensor(ir.tensor(array, name=free_name(value_name(array), self.initializers)))
        return self._shared[key]

    def tensor(self, tensor: ir.TensorProtocol) -> ir.Value:
        """Return an initializer that holds `tensor`, under its name."""
        name = str(tensor.name)
        if name in self.initializers:
            raise ValueError(f"two initializers are called {name!r}")
        value = ir.Value(
            name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.initializers[name] = value
        return value

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        *,
        domain: str = "",
        attributes: Mapping[str, Any] | None = None,
        node_name: str | None = None,
    ) -> ir.Value:
        """Append a node with one output called `name`; the node is called `node_name`, by default `name` too."""
        output = ir.Value(name=name)
        node = ir.node(
            op_type, inputs, attributes=attributes or {}, domain=domain, outputs=[output], name=node_name or name
        )
        self.nodes.append(node)
        return output

    def model(
        self,
        inputs: Sequence[ir.Value],
        outputs: Sequence[ir.Value],
        opsets: Mapping[str, int],
        ir_version: int,
        named: Collection[ir.Value] = (),
    ) -> ir.Model:
        """Return the model of all emitted nodes, without initializers that no node reads.

        Args:
            inputs, outputs: of the graph.
            opsets: version by domain.
            ir_version: of the file format.
            named: tensors that keep their names, besides inputs and outputs; any other that has one of these names, or
                that of another, gets a number after it.
        """
        used = {value for node in self.nodes for value in node.inputs if value is not None}
        self._tell_apart({*inputs, *outputs, *named}, used)
        graph = ir.Graph(
            inputs,
            outputs,
            nodes=self.nodes,
            initializers=tuple(value for value in self.initializers.values() if value in used),
            opset_imports=dict(opsets),
            name="qil_deploy",
        )
        return ir.Model(graph, ir_version=ir_version, producer_name="qil_deploy")

    def _tell_apart(self, named: set[ir.Value], used: set[ir.Value]) -> None:
        """Give every tensor a unique name; those whose names are fixed come first."""
        taken = {str(value.name) for value in named}
        made = [output for node in self.nodes for output in node.outputs]
        for value in (*made, *(value for value in self.initializers.values() if value in used)):
            if value not in named:
                value.name = free_name(str(value.name), taken)
                taken.add(value.name)


def is_shared(array: NDArray[Any]) -> bool:
    """Whether a constant is stored once, however often it occurs: a scalar, or only zeros."""
    return array.ndim == 0 or not array.any()


def bits_of(array: NDArray[Any]) -> Bits:
    """Return a key that is equal for two constants with equal bits."""
    return str(array.dtype), array.shape, array.tobytes()


def value_name(array: NDArray[Any]) -> str:
    """Return the name of a shared constant, made from its type and value."""
    value = f"{array.item():.9g}" if array.ndim == 0 else f"0x{'x'.join(map(str, array.shape))}"
    return f"{array.dtype}_{value}"


def free_name(name: str, taken: Collection[str]) -> str:
    """Return `name`, or with a number appended the first such name that is not taken."""
    candidates = (f"{name}_{number}" for number in itertools.count(2))
    return name if name not in taken else next(candidate for candidate in candidates if candidate not in taken)


def release(model: ir.Model) -> None:
    """Remove the constants of a model that are no longer read.

    Its nodes and tensors refer to each other, and would keep all weights in memory until Python collects such
    cycles, which may be much later.
    """
    for value in model.graph.initializers.values():
        value.const_value = None


def integer(node: ir.Node, name: str) -> int:
    """Return an integer attribute."""
    return node.attributes[name].as_int()


def real(node: ir.Node, name: str) -> float:
    """Return a float attribute."""
    return node.attributes[name].as_float()


def array_of(value: ir.Value) -> NDArray[Any]:
    """Return the content of a constant.

    Raises:
        ValueError: a node computes the value.
    """
    if value.const_value is None:
        raise ValueError(f"{value.name!r} is computed, and has to be a constant")
    return value.const_value.numpy()
