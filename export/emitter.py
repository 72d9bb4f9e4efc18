"""Build an ONNX graph node by node: constants become initializers, equal scalars are stored once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

QIL_DOMAIN = "qil"
MICROSOFT_DOMAIN = "com.microsoft"


class Emitter:
    """Collects the nodes and initializers of a graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self._shared: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def constant(self, array: NDArray[Any] | np.generic, name: str) -> ir.Value:
        """Return an initializer; scalars, and vectors of zeros, that are equal share one, named after the value."""
        array = np.asarray(array)
        if array.ndim > 0 and array.any():
            return self.tensor(ir.tensor(array, name=name))
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._shared:
            value = f"{array.item():.9g}" if array.ndim == 0 else f"0x{'x'.join(map(str, array.shape))}"
            self._shared[key] = self.tensor(ir.tensor(array, name=f"{array.dtype}_{value}"))
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
        self, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], opsets: Mapping[str, int], ir_version: int
    ) -> ir.Model:
        """Return the model of everything emitted, without initializers that no node reads."""
        used = {value for node in self.nodes for value in node.inputs}
        graph = ir.Graph(
            inputs,
            outputs,
            nodes=self.nodes,
            initializers=tuple(value for value in self.initializers.values() if value in used),
            opset_imports=dict(opsets),
            name="qil_deploy",
        )
        return ir.Model(graph, ir_version=ir_version, producer_name="qil_deploy")


def copy_node(emitter: Emitter, node: ir.Node, inputs: Sequence[ir.Value | None]) -> ir.Value:
    """Append a copy of a node of another graph, with new inputs."""
    return emitter.op(
        node.op_type,
        inputs,
        str(node.outputs[0].name),
        domain=node.domain,
        attributes={attribute.name: attribute for attribute in node.attributes.values()},
        node_name=node.name,
    )


Rule = Callable[[Emitter, ir.Node, list[ir.Value]], ir.Value]


def rewrite(model: ir.Model, rules: Mapping[tuple[str, str], Rule]) -> ir.Model:
    """Return `model` with each node that has a rule replaced by what the rule emits, and all others kept.

    Args:
        model: left unchanged.
        rules: by (domain, op type); a rule gets the emitter, the old node and its new inputs, and returns the new
            value of the node's output.
    """
    emitter = Emitter()
    values: dict[ir.Value, ir.Value] = {}
    inputs = [ir.Value(name=value.name, shape=value.shape, type=value.type) for value in model.graph.inputs]
    values.update(zip(model.graph.inputs, inputs, strict=True))

    def translate(value: ir.Value) -> ir.Value:
        if value not in values:
            if value.const_value is None:
                raise ValueError(f"nothing computes {value.name!r}")
            tensor = value.const_value
            packed = tensor.dtype in (ir.DataType.INT2, ir.DataType.INT4)
            values[value] = emitter.tensor(tensor) if packed else emitter.constant(tensor.numpy(), str(value.name))
        return values[value]

    for node in model.graph:
        sources = [None if value is None else translate(value) for value in node.inputs]
        rule = rules.get((node.domain, node.op_type))
        if rule is not None:
            values[node.outputs[0]] = rule(emitter, node, [source for source in sources if source is not None])
        else:
            values[node.outputs[0]] = copy_node(emitter, node, sources)
    outputs = []
    for old in model.graph.outputs:
        new = values[old]
        new.name, new.shape, new.type = old.name, old.shape, old.type
        outputs.append(new)
    return emitter.model(inputs, outputs, model.graph.opset_imports, model.ir_version)


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
