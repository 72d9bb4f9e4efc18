"""Reasons why ONNX Runtime did not fuse operators that read dequantized codes, as seen in the executed graph.

It fuses DequantizeLinear, an operator and QuantizeLinear to one integer kernel under conditions that it does not
report. They are checked one by one on the graph that it executes, those before the operator first (fusion_inputs.py),
then those after it (fusion_results.py): the first that is not met is the reason. They were found
by changing one thing at a time in graphs that ONNX Runtime 1.32 fuses (tests/runtime_tests/doctor/faults.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final

from qil_deploy.onnx_io import Node
from qil_deploy.reference import operator_of

from .findings import Finding, found, quoted
from .fusion_inputs import float_parameters, input_reasons
from .fusion_reason import CASTS, Reason, dequantizes, overridable, readers
from .fusion_results import result_reasons
from .graphs import Graph

_UNKNOWN: Final = Reason(
    "its neighbours do not tell why",
    "Compare it with a layer that fuses: quantize_static of ONNX Runtime places QDQ pairs that do.",
)


def unfused_findings(graphs: Sequence[Graph], machine: str) -> Iterator[Finding]:
    """Find unfused operators in executed graphs, given the types of their tensors; one finding for each remedy.

    Args:
        graphs: what is executed.
        machine: instruction set, as Python names it.
    """
    places: dict[str, list[str]] = {}
    for graph in graphs:
        for node in graph.file.nodes:
            if (reason := _why_unfused(graph, node, machine)) is not None:
                places.setdefault(reason.remedy, []).append(f"{graph.label(node)}: {reason.text}")
    for remedy, where in places.items():
        yield from found(
            "qdq-unfused",
            "slow",
            where,
            what="operators that read dequantized codes were not fused to integer kernels",
            why="Each dequantizes its inputs and computes in float.",
            remedy=remedy,
        )


def _why_unfused(graph: Graph, node: Node, machine: str) -> Reason | None:
    """Return why an operator was not fused; None if it computes no floats, or reads no dequantized codes."""
    if not operator_of(node).fused_to or not graph.is_float(node.outputs[0]):
        return None
    sources = {name: graph.source(name, CASTS) for name in graph.data_inputs(node)}
    data = [source for source in sources.values() if source is not None and dequantizes(source)]
    if not data:
        return None
    reasons = chain(
        input_reasons(graph, node, sources),
        result_reasons(graph, node, data, machine),
        float_parameters(graph, node),
        [_replaceable(graph, [*data, *readers(graph, node.outputs[0])])],
    )
    return next((reason for reason in reasons if reason is not None), _UNKNOWN)


def _replaceable(graph: Graph, nodes: Sequence[Node]) -> Reason | None:
    names = [name for node in nodes for name in node.inputs[1:] if name in graph.overridable]
    return overridable(f"the scale or zero point {quoted(names[0])}") if names else None
