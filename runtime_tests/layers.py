"""What the layers of an exported model are made of, read from its graph: bits, scales, weights, work and storage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qil_deploy.dequantized_weights import dequantized_codes
from qil_deploy.errors import ModelFileError
from qil_deploy.exported_metadata import read_metadata
from qil_deploy.float_parts import kept_parts, part_shapes
from qil_deploy.onnx_file import Node, OnnxFile
from qil_deploy.onnx_schema import with_outputs
from qil_deploy.onnx_tensors import bits_of_type
from qil_deploy.reference import IntegerReference
from qil_deploy.reference.matmul_nbits import unpack_blocks

from .exported_model import ExportedModel
from .sessions import create_session

_LAYER_OPERATORS = ("QLinearConv", "QGemm", "MatMulNBits")


@dataclass(frozen=True, kw_only=True)
class LayerDescription:
    """One convolution or linear layer.

    Attributes:
        name: of the layer in the network.
        operator: the integer operator that computes it (in a QDQ file: the one that ONNX Runtime fuses it to).
        weight_bits: of the weight codes.
        largest_input_code: of the codes it reads.
        weight_shape: [C_out, C_in / groups, height, width] or [features out, features in].
        macs: multiplications with a weight that are executed for one image, padding included.
        bytes: of the stored weights.
        zero_share: of the weight codes, those that are zero (pruned), 0 to 1.
        dead_channels: output channels whose weights are all zero.
        smallest_multiplier, largest_multiplier: `M` over the channels, output codes (or logits) per step of the
            accumulator; None where the graph spreads it over several operators (MatMulNBits, float parts).
    """

    name: str
    operator: str
    weight_bits: int
    largest_input_code: int
    weight_shape: tuple[int, ...]
    macs: int
    bytes: int
    zero_share: float
    dead_channels: int
    smallest_multiplier: float | None
    largest_multiplier: float | None


def describe_layers(model: ExportedModel) -> tuple[LayerDescription, ...]:
    """Describe every quantized layer of a model in `qlinear` or `qdq` format, in order of execution.

    Raises:
        ModelFileError: the metadata lists no layers, or others than the graph has.
    """
    listed = _listed_layers(model)
    kept = kept_parts(model.graph)
    if model.float_parts and not kept:
        return _describe_paper(model, listed)
    reference = IntegerReference(model.graph)
    nodes = {node.name: node for node in reference.nodes if node.op_type in _LAYER_OPERATORS}
    if kept:  # which the reference does not compute
        shapes = part_shapes(model.graph, tuple(node.outputs[0] for node in nodes.values()))
    else:
        shapes = {name: array.shape for name, array in reference.run_all(_blank_image(model)).items()}
    if set(nodes) != set(listed):
        odd = sorted(set(nodes) ^ set(listed))[0]
        raise ModelFileError(f"metadata and graph of {model.path} disagree about layer {odd!r}; export it again.")
    return tuple(
        _describe(model.graph, reference.constants, node, listed[name], shapes[node.outputs[0]])
        for name, node in nodes.items()
    )


def _describe_paper(model: ExportedModel, listed: dict[str, dict[str, Any]]) -> tuple[LayerDescription, ...]:
    """Describe the low-bit layers of a file with float parts; their output shapes come from ONNX Runtime."""
    nodes = {node.name: node for node in model.graph.nodes if node.name in listed}
    outputs = {name: node.outputs[0] for name, node in nodes.items()}
    content = with_outputs(model.path.read_bytes(), outputs.values())
    session = create_session(model.path, level="disabled", content=content)
    tensors = model.run(session, np.zeros((1, *model.preprocessing.shape), np.uint8))
    layers = []
    for name, layer in listed.items():
        codes = dequantized_codes(model.graph, nodes[name]) if name in nodes else None
        if codes is None:
            raise ModelFileError(f"metadata and graph of {model.path} disagree about layer {name!r}; export it again.")
        layers.append(
            LayerDescription(
                name=name,
                operator=nodes[name].op_type,
                weight_bits=int(layer["weight_bits"]),
                largest_input_code=int(layer["largest_input_code"]),
                weight_shape=codes.shape,
                macs=codes[0].size * math.prod(tensors[outputs[name]].shape[1:]),
                bytes=_stored_bytes(model.graph, f"{name}_weight"),
                zero_share=float((codes == 0).mean()),
                dead_channels=int((~codes.reshape(len(codes), -1).any(axis=1)).sum()),
                smallest_multiplier=None,
                largest_multiplier=None,
            )
        )
    return tuple(layers)


def _listed_layers(model: ExportedModel) -> dict[str, dict[str, Any]]:
    metadata = read_metadata(model.graph)
    try:
        listed = {layer["name"]: layer for layer in metadata["layers"]}
        missing = [name for name, layer in listed.items() if not {"weight_bits", "largest_input_code"} <= layer.keys()]
    except KeyError as error:
        raise ModelFileError(
            f"the metadata of {model.path} has no entry {error} that could be read; export the model again."
        ) from error
    if missing:
        raise ModelFileError(
            f"the metadata of {model.path} does not say how many bits layer {missing[0]!r} has and which codes it "
            "reads; export the model again."
        )
    return listed


def _blank_image(model: ExportedModel) -> NDArray[Any]:
    size = model.graph.inputs[0].shape
    batch = size[0] if size is not None and isinstance(size[0], int) else 1
    return np.zeros((batch, *model.preprocessing.shape), np.uint8 if model.input == "uint8" else np.float32)


def _describe(
    graph: OnnxFile,
    constants: dict[str, NDArray[Any]],
    node: Node,
    listed: dict[str, Any],
    output: tuple[int, ...],
) -> LayerDescription:
    weights = _weights(node, constants)
    shape = tuple(int(size) for size in listed.get("weight_shape", weights.shape))
    nonzero = int(np.count_nonzero(weights))
    multipliers = _multipliers(node, constants)
    return LayerDescription(
        name=node.name,
        operator=node.op_type,
        weight_bits=int(listed["weight_bits"]),
        largest_input_code=int(listed["largest_input_code"]),
        weight_shape=shape,
        macs=weights[0].size * math.prod(output[1:]),
        bytes=_stored_bytes(graph, node.inputs[1 if node.op_type == "MatMulNBits" else 3]),
        zero_share=1 - nonzero / math.prod(shape),
        dead_channels=int((~weights.reshape(len(weights), -1).any(axis=1)).sum()),
        smallest_multiplier=None if multipliers is None else float(multipliers.min()),
        largest_multiplier=None if multipliers is None else float(multipliers.max()),
    )


def _weights(node: Node, constants: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """Return the weight codes that are multiplied, output channels first."""
    if node.op_type == "MatMulNBits":
        attributes = {name: int(node.attributes[name]) for name in ("N", "K", "bits", "block_size")}  # type: ignore[arg-type] # a wrong type is a TypeError
        shape = (attributes["N"], attributes["K"])
        return unpack_blocks(constants[node.inputs[1]], shape, attributes["bits"], attributes["block_size"])
    weights = constants[node.inputs[3]]
    return weights if node.op_type == "QLinearConv" or node.attributes.get("transB", 0) else weights.T


def _multipliers(node: Node, constants: dict[str, NDArray[Any]]) -> NDArray[Any] | None:
    if node.op_type == "MatMulNBits":
        return None
    output = 6 if node.op_type == "QLinearConv" else 7
    scale = constants[node.inputs[1]] * constants[node.inputs[4]]
    return np.asarray(scale / constants[node.inputs[output]] if len(node.inputs) > output else scale)


def _stored_bytes(graph: OnnxFile, name: str) -> int:
    """Return the bytes of the initializers that a tensor is computed from."""
    producers = {output: node for node in graph.nodes for output in node.outputs}
    seen, waiting, stored = {name}, [name], 0
    while waiting:
        found = waiting.pop()
        if found in graph.initializers:
            stored += math.ceil(graph.initializers[found].size * bits_of_type(graph.stored_types[found]) / 8)
        elif found in producers:
            sources = set(producers[found].inputs) - seen
            seen |= sources
            waiting += sources
    return stored
