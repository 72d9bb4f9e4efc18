"""The weight codes that a float Conv or Gemm of a QDQ file multiplies, dequantized, where no integer kernel does."""

from __future__ import annotations

from collections.abc import Mapping

from .model_file import Node, OnnxFile
from .tensors import Array

_CHAINS = (["DequantizeLinear"], ["DequantizeLinear", "Cast"])


def dequantized_codes(graph: OnnxFile, node: Node, producers: Mapping[str, Node] | None = None) -> Array | None:
    """Return the stored codes [C_out, ...] behind a layer's weights; None if these are no dequantized constants.

    Args:
        graph: the file.
        node: a layer.
        producers: the node that makes each tensor of the graph, where that is known already.
    """
    if producers is None:
        producers = {output: producer for producer in graph.nodes for output in producer.outputs}
    source = node.inputs[1] if len(node.inputs) > 1 else ""
    chain: list[str] = []
    while source in producers and len(chain) < len(_CHAINS[-1]):  # a file may have cycles
        chain.append(producers[source].op_type)
        source = producers[source].inputs[0] if producers[source].inputs else ""
    return graph.initializers.get(source) if chain in _CHAINS else None
