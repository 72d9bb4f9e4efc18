"""Write the float parts of a frozen model in ONNX: traced operators between DequantizeLinear and QuantizeLinear.

    FrozenFloat "name"    name/x0 = DequantizeLinear(codes), ...
                          name/... = the operators that `torch.onnx.export` writes for the float code
                          name = QuantizeLinear(...) [-> Clip]

These are operators of ONNX already, the same in both formats, and no pass rewrites them. Every node, and every tensor
but the resulting codes, is named `name/...`, by which a reader of the file finds them
(`qil_deploy.onnx_io.float_parts`).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from torch import fx, nn

from qil_deploy.errors import UnsupportedModelError
from qil_deploy.integers import FrozenFloat, Grid
from qil_deploy.network import module_of
from qil_deploy.onnx_io import inner_name

from .emitter import Emitter, array_of
from .trace_float import trace_float

# The oldest operator set that PyTorch's tracer writes natively; conversion to older ones may fail.
MIN_FLOAT_OPSET = 18
_SUBGRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def has_float(model: fx.GraphModule) -> bool:
    """Tell whether a frozen model has float parts."""
    return any(isinstance(module, FrozenFloat) for module in model.modules())


@dataclass(frozen=True, kw_only=True)
class TracedPart:
    """Float operators of one part: the values it reads, its nodes in order, and the value it makes."""

    inputs: Sequence[ir.Value]
    nodes: Sequence[ir.Node]
    output: ir.Value


def trace_parts(model: fx.GraphModule, opset: int) -> dict[fx.Node, TracedPart]:
    """Return the float operators of all float parts of a frozen model, traced in one go.

    Args:
        model: from `freeze`.
        opset: operator set of the operators, `MIN_FLOAT_OPSET` at least.

    Raises:
        UnsupportedModelError: PyTorch cannot write one of them in plain ONNX operators.
    """
    parts = {
        node: module
        for node in model.graph.nodes
        if node.op == "call_module" and isinstance(module := module_of(model, node), FrozenFloat)
    }
    if not parts:
        return {}
    try:
        graph = _trace(list(parts.values()), opset)
    except Exception:  # the tracer's own, of many types; tracing each alone shows which one fails
        for node, module in parts.items():
            _trace_alone(module, str(node.target), opset)
        raise
    inputs = iter(graph.inputs)
    traced = {
        node: _traced_part(graph, list(itertools.islice(inputs, len(module.inputs))), output, module, opset)
        for (node, module), output in zip(parts.items(), graph.outputs, strict=True)
    }
    for node, part in traced.items():
        _check_operators(str(node.target), part.nodes)
    return traced


def _trace(modules: Sequence[FrozenFloat], opset: int) -> ir.Graph:
    graph, holder = fx.Graph(), nn.Module()
    shapes = [shape for module in modules for shape in module.island.input_shapes]
    names = [f"x{index}" for index in range(len(shapes))]
    unread = iter([graph.placeholder(name) for name in names])
    results = []
    for index, module in enumerate(modules):
        holder.add_module(f"part{index}", copy.deepcopy(module.island.body).cpu())
        results.append(graph.call_module(f"part{index}", tuple(itertools.islice(unread, len(module.inputs)))))
    graph.output(tuple(results))
    outputs = [f"y{index}" for index in range(len(modules))]
    return trace_float(fx.GraphModule(holder, graph), shapes, names, outputs, opset).graph


def _trace_alone(module: FrozenFloat, name: str, opset: int) -> None:
    try:
        _trace([module], opset)
    except Exception as error:  # as above
        reason = str(error).strip().partition("\n")[0]
        raise UnsupportedModelError(f"{name!r}, kept in float, cannot be written as ONNX: {reason}.") from error


def _traced_part(
    graph: ir.Graph, inputs: Sequence[ir.Value], output: ir.Value, module: FrozenFloat, opset: int
) -> TracedPart:
    """Return one of the parts that were traced together.

    The tracer asks one input for the number of images, on behalf of all parts; a part that reads another's input is
    traced anew, alone.
    """
    part = _part_of(graph, inputs, output)
    foreign = set(graph.inputs).difference(inputs)
    if not any(foreign.intersection(node.inputs) for node in part.nodes):
        return part
    alone = _trace([module], opset)
    return _part_of(alone, list(alone.inputs), alone.outputs[0])


def _part_of(graph: ir.Graph, inputs: Sequence[ir.Value], output: ir.Value) -> TracedPart:
    """Return the operators that lead to one output."""
    wanted = {output}
    nodes: list[ir.Node] = []
    for node in reversed(graph):
        if wanted.intersection(node.outputs):
            nodes.append(node)
            wanted.update(value for value in node.inputs if value is not None)
    return TracedPart(inputs=inputs, nodes=nodes[::-1], output=output)


def _check_operators(name: str, nodes: Sequence[ir.Node]) -> None:
    for node in nodes:
        is_plain = not node.domain and len(node.outputs) == 1
        if not is_plain or any(attribute.type in _SUBGRAPHS for attribute in node.attributes.values()):
            raise UnsupportedModelError(
                f"{name!r}, kept in float, becomes the operator {node.domain or 'ai.onnx'} {node.op_type} with "
                f"{len(node.outputs)} outputs; only operators of ONNX with one output and no subgraph are written."
            )


def capture_float(
    emitter: Emitter, module: FrozenFloat, sources: Sequence[ir.Value], name: str, part: TracedPart
) -> ir.Value:
    """Emit a float part; return its resulting codes.

    Args:
        emitter: of the graph.
        module: what is kept.
        sources: the codes that it reads.
        name: of the resulting codes.
        part: its float operators.
    """
    values = {
        inner: emitter.op("DequantizeLinear", [source, *_constants(emitter, grid)], inner_name(name, f"x{index}"))
        for index, (inner, source, grid) in enumerate(zip(part.inputs, sources, module.reads(), strict=True))
    }
    for node in part.nodes:
        inputs = [None if value is None else _translate(emitter, values, value, name) for value in node.inputs]
        values[node.outputs[0]] = emitter.op(
            node.op_type,
            inputs,
            inner_name(name, str(node.outputs[0].name)),
            attributes={attribute.name: attribute for attribute in node.attributes.values()},
        )
    real = _translate(emitter, values, part.output, name)
    low, high = module.y.limits()
    clipped = (low, high) != (0, 255)
    codes = emitter.op(
        "QuantizeLinear",
        [real, *_constants(emitter, module.y)],
        f"{name}_unclipped" if clipped else name,
        node_name=inner_name(name, "quantize"),
    )
    if not clipped:
        return codes
    limits = [emitter.constant(np.uint8(limit), "") for limit in (low, high)]
    return emitter.op("Clip", [codes, *limits], name, node_name=f"{name}_clip")


def _translate(emitter: Emitter, values: dict[ir.Value, ir.Value], value: ir.Value, name: str) -> ir.Value:
    """Return the emitted value of a traced one; constants are emitted when they are first read."""
    if value not in values:
        values[value] = emitter.constant(array_of(value), inner_name(name, str(value.name)))
    return values[value]


def _constants(emitter: Emitter, grid: Grid) -> list[ir.Value]:
    return [
        emitter.constant(np.float32(float(grid.scale)), ""),
        emitter.constant(np.uint8(int(grid.zero_point)), ""),
    ]
