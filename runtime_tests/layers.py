"""Describe the layers of an exported model from its graph: bits, scales, weights, work and storage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qil_deploy.errors import ModelFileError
from qil_deploy.onnx_io import (
    PACKED_MATMULS,
    Node,
    OnnxFile,
    bits_of_type,
    dequantized_codes,
    kept_parts,
    part_shapes,
    read_metadata,
    with_outputs,
)
from qil_deploy.reference import IntegerReference, blocks, check_blocks, integer, operator_of, unpack_blocks
from qil_deploy.untrusted_text import excerpt

from .exported_model import ExportedModel
from .sessions import create_session


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
    nodes = {node.name: node for node in reference.nodes if operator_of(node).weights is not None}
    if kept:  # not computed by the reference
        shapes = part_shapes(model.graph, tuple(node.outputs[0] for node in nodes.values()))
    else:
        shapes = reference.shapes(_blank_image(model))
    if set(nodes) != set(listed):
        raise _disagreement(model, min(set(nodes) ^ set(listed)))
    file, constants = _StoredFile(model.graph), _Constants(model, reference.constants)
    layers = []
    for name, node in nodes.items():
        weights, multipliers = _count_weights(node, constants), _multipliers(node, constants)
        stored = file.bytes_behind(node.inputs[_weights_at(node)])
        layers.append(_describe(node, listed[name], weights, shapes[node.outputs[0]], stored, multipliers))
    return tuple(layers)


def _disagreement(model: ExportedModel, layer: str) -> ModelFileError:
    return ModelFileError(
        f"metadata and graph of {model.path} disagree about layer {excerpt(repr(layer))}; export it again."
    )


def _weights_at(node: Node) -> int:
    """Return the index of a layer's weights among its inputs."""
    index = operator_of(node).weights
    if index is None:
        raise TypeError(f"{node.op_type} has no weights")
    return index


class _Constants:
    """Constants that layers require."""

    def __init__(self, model: ExportedModel, values: Mapping[str, NDArray[Any]]) -> None:
        self._model = model
        self._values = values

    def of(self, node: Node, index: int) -> NDArray[Any]:
        """Return an input of a node.

        Raises:
            ModelFileError: it is missing, or computed from the images.
        """
        name = node.inputs[index] if index < len(node.inputs) else ""
        if name not in self._values:
            raise _disagreement(self._model, node.name)
        return self._values[name]


def _describe_paper(model: ExportedModel, listed: dict[str, dict[str, Any]]) -> tuple[LayerDescription, ...]:
    """Describe the low-bit layers of a file with float parts; their output shapes come from ONNX Runtime."""
    nodes = {node.name: node for node in model.graph.nodes if node.name in listed}
    outputs = {name: node.outputs[0] for name, node in nodes.items()}
    content = with_outputs(model.path.read_bytes(), outputs.values())
    session = create_session(model.path, level="disabled", content=content)
    tensors = model.run(session, np.zeros((1, *model.preprocessing.shape), np.uint8))
    layers = []
    file = _StoredFile(model.graph)
    for name, listing in listed.items():
        codes = dequantized_codes(model.graph, nodes[name], file.producers) if name in nodes else None
        if codes is None or codes.ndim == 0:
            raise _disagreement(model, name)
        weights = _count_nonzero(codes.shape, [codes])
        stored = file.bytes_behind(f"{name}_weight")
        layers.append(_describe(nodes[name], listing, weights, tensors[outputs[name]].shape, stored, None))
    return tuple(layers)


def _listed_layers(model: ExportedModel) -> dict[str, dict[str, Any]]:
    metadata = read_metadata(model.graph)
    try:
        listed = {layer["name"]: layer for layer in metadata["layers"]}
        missing = [name for name, layer in listed.items() if not {"weight_bits", "largest_input_code"} <= layer.keys()]
    except KeyError as error:
        raise ModelFileError(
            f"the metadata of {model.path} has no entry {excerpt(str(error))} that could be read; export it again."
        ) from error
    if missing:
        raise ModelFileError(
            f"the metadata of {model.path} does not say how many bits layer {excerpt(repr(missing[0]))} has and which "
            "codes it reads; export the model again."
        )
    return listed


def _blank_image(model: ExportedModel) -> NDArray[Any]:
    size = model.graph.inputs[0].shape
    batch = size[0] if size is not None and isinstance(size[0], int) else 1
    return np.zeros((batch, *model.preprocessing.shape), np.uint8 if model.input == "uint8" else np.float32)


def _describe(
    node: Node,
    listed: dict[str, Any],
    weights: _Weights,
    output: tuple[int, ...],
    stored: int,
    multipliers: NDArray[Any] | None,
) -> LayerDescription:
    """Describe a layer that makes a tensor of shape `output` from weights of `stored` bytes."""
    shape = tuple(int(axis) for axis in listed.get("weight_shape", weights.shape))
    size = max(math.prod(shape), 1)
    return LayerDescription(
        name=node.name,
        operator=node.op_type,
        weight_bits=int(listed["weight_bits"]),
        largest_input_code=int(listed["largest_input_code"]),
        weight_shape=shape,
        macs=math.prod(weights.shape[1:]) * math.prod(output[1:]),
        bytes=stored,
        zero_share=(size - weights.nonzero) / size,
        dead_channels=weights.dead,
        smallest_multiplier=None if multipliers is None else float(multipliers.min()),
        largest_multiplier=None if multipliers is None else float(multipliers.max()),
    )


@dataclass(frozen=True, kw_only=True)
class _Weights:
    """Weight codes as multiplied: their shape, output channels first; the number of nonzero ones; dead channels."""

    shape: tuple[int, ...]
    nonzero: int
    dead: int


def _count_weights(node: Node, constants: _Constants) -> _Weights:
    """Count a few channels at a time: unpacked weights are many times as large as stored ones."""
    if node.op_type in PACKED_MATMULS:
        outputs, columns = integer(node, "N", 0), integer(node, "K", 0)
        bits, block = integer(node, "bits", 4), integer(node, "block_size", 0)
        packed = constants.of(node, _weights_at(node))
        check_blocks(packed, (outputs, columns), bits, block)
        shape: tuple[int, ...] = (outputs, columns // block, block)
        rows = (
            unpack_blocks(packed[some], (len(packed[some]), columns), bits, block) for some in blocks(outputs, columns)
        )
    else:
        weights = constants.of(node, _weights_at(node))
        if node.op_type == "QGemm" and not node.attributes.get("transB", 0):
            weights = weights.T
        shape = weights.shape
        rows = (weights[some] for some in blocks(len(weights), math.prod(shape[1:])))
    return _count_nonzero(shape, rows)


def _count_nonzero(shape: tuple[int, ...], rows: Iterable[NDArray[Any]]) -> _Weights:
    """Count the nonzero codes of consecutive channels."""
    counts = [(np.count_nonzero(part), (~part.reshape(len(part), -1).any(axis=1)).sum()) for part in rows]
    return _Weights(
        shape=shape, nonzero=sum(int(count) for count, _ in counts), dead=sum(int(dead) for _, dead in counts)
    )


def _multipliers(node: Node, constants: _Constants) -> NDArray[Any] | None:
    grid = operator_of(node).result
    if grid is None:
        return None
    with np.errstate(all="ignore"):
        scale = constants.of(node, 1) * constants.of(node, 4)
        return np.asarray(scale / constants.of(node, grid.scale) if len(node.inputs) > grid.scale else scale)


class _StoredFile:
    """Stored tensors of a file, and those computed from them."""

    def __init__(self, graph: OnnxFile) -> None:
        self._graph = graph
        self.producers = {output: node for node in graph.nodes for output in node.outputs}

    def bytes_behind(self, name: str) -> int:
        """Return the bytes of the initializers that a tensor is computed from."""
        graph = self._graph
        seen, waiting, stored = {name}, [name], 0
        while waiting:
            found = waiting.pop()
            if found in graph.initializers:
                stored += math.ceil(graph.initializers[found].size * bits_of_type(graph.stored_types[found]) / 8)
            elif found in self.producers:
                sources = set(self.producers[found].inputs) - seen
                seen |= sources
                waiting += sources
        return stored
