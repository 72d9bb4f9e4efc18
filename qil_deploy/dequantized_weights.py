"""The weight codes that a float Conv or Gemm of a QDQ file multiplies, dequantized, where no integer kernel does."""

from __future__ import annotations

from .onnx_file import Node, OnnxFile
from .onnx_tensors import Array

_CHAINS = (["DequantizeLinear"], ["DequantizeLinear", "Cast"])


def dequantized_codes(graph: OnnxFile, node: Node) -> Array | None:
    """Return the stored codes [C_out, ...] behind a layer's weights; None if these are no dequantized constants."""
    producers = {output: producer for producer in graph.nodes for output in producer.outputs}
    source, chain = node.inputs[1], []
    while source in producers:
        chain.append(producers[source].op_type)
        source = producers[source].inputs[0]
    return graph.initializers.get(source) if chain in _CHAINS else None
