"""Tools for rules: free names, constants that are stored once, nodes that replace others.

Metadata, golden vectors and comparisons find tensors by the names of the network's modules, so these names are never
left to chance: anything a rule adds takes a free name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.rewriter import RewriterContext

from qil_deploy.export.emitter import QIL_DOMAIN, bits_of, free_name, is_shared, value_name


class Workspace:
    """A graph while a pass rewrites it: taken names, and constants that are stored once."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
        self._taken = {str(value.name) for value in values}
        self._taken_by_nodes = _tell_nodes_apart(graph)
        self._shared = {
            bits_of(content.numpy()): value
            for value in graph.initializers.values()
            if (content := value.const_value) is not None
            and content.dtype not in (ir.DataType.INT2, ir.DataType.INT4)
            and is_shared(content.numpy())
        }

    def take_name(self, name: str) -> str:
        """Return `name`, or the first free name like it, and mark it as taken."""
        free = free_name(name, self._taken)
        self._taken.add(free)
        return free

    def take_node_name(self, name: str) -> str:
        """Return `name`, or the first like it that no node has."""
        free = free_name(name, self._taken_by_nodes)
        self._taken_by_nodes.add(free)
        return free

    def constant(self, array: NDArray[Any] | np.generic, name: str) -> ir.Value:
        """Return an initializer; scalars, and vectors of zeros, share one where every bit is equal.

        A shared one is named after its value, with a number after it if that name is taken.
        """
        array = np.asarray(array)
        if not is_shared(array):
            return self.tensor(ir.tensor(array, name=name))
        key = bits_of(array)
        if key not in self._shared:
            self._shared[key] = self.tensor(ir.tensor(array, name=value_name(array)))
        return self._shared[key]

    def tensor(self, tensor: ir.TensorProtocol) -> ir.Value:
        """Return an initializer that holds `tensor`, under its name or the first like it that is free."""
        value = ir.Value(
            name=self.take_name(str(tensor.name)),
            shape=ir.Shape(tensor.shape.numpy()),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value


def _tell_nodes_apart(graph: ir.Graph) -> set[str]:
    """Give every node a unique name, beginning with the layers, which metadata list by name; return all names."""
    layers = [node for node in graph if node.domain == QIL_DOMAIN or node.op_type in ("Conv", "Gemm")]
    taken = {str(node.name) for node in layers}
    known = set(layers)
    for node in (node for node in graph if node not in known):
        if node.name in taken:
            node.name = free_name(str(node.name), taken)
        taken.add(str(node.name))
    return taken


class Replacement:
    """Writes the nodes that replace others.

    A node with the name of the replaced one keeps it; all other nodes get free names.
    """

    def __init__(self, op: RewriterContext, workspace: Workspace, written: set[ir.Node], name: str = "") -> None:
        """Write with `op` into the graph of a workspace, instead of the node called `name`; note what is written."""
        self._op = op
        self._replaced = {name}
        self._workspace = workspace
        self._written = written
        self.constant = workspace.constant
        self.tensor = workspace.tensor

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
        """Write a node with one output called `name`; the node is called `node_name`, by default `name` too."""
        own = node_name or name
        output: ir.Value = self._op.op(  # type: ignore[attr-defined]  # of the one builder that there is
            op_type,
            *inputs,
            _domain=domain,
            _outputs=[self._workspace.take_name(name)],
            _name=own if own in self._replaced else self._workspace.take_node_name(own),
            **(attributes or {}),
        )
        self._written.add(output.producer())  # type: ignore[arg-type]  # it has just been made
        return output

    def rename(self, value: ir.Value, name: str) -> None:
        """Give a value that has been written another name, or the first like it that is free."""
        value.name = self._workspace.take_name(name)

    def copy(
        self, node: ir.Node, inputs: Sequence[ir.Value | None], name: str | None = None, **attributes: object
    ) -> ir.Value:
        """Write a copy of a node with new inputs, its result called `name`; attributes that are None are left out."""
        self._replaced.add(str(node.name))
        changed = {attribute.name: attribute for attribute in node.attributes.values()} | attributes
        return self.op(
            node.op_type,
            inputs,
            name or str(node.outputs[0].name),
            domain=node.domain,
            attributes={name: value for name, value in changed.items() if value is not None},
            node_name=node.name,
        )


def inputs_of(node: ir.Node) -> list[ir.Value]:
    """Return the inputs of a node that are present."""
    return [value for value in node.inputs if value is not None]


def producer_of(value: ir.Value) -> ir.Node:
    """Return the node that makes a value.

    Raises:
        ValueError: none does.
    """
    node = value.producer()
    if node is None:
        raise ValueError(f"nothing computes {value.name!r}")
    return node


def drop_unread(graph: ir.Graph) -> None:
    """Remove constants that no node reads, and free their content.

    Nodes and tensors refer to each other, and would keep all weights in memory until Python collects such
    cycles, which may be much later.
    """
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
            value.const_value = None
