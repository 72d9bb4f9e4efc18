"""Write an ONNX file tensor by tensor, followed by its metadata.

The bytes are those that protobuf writes for the whole model: fields in the order of their numbers, weights in between.
Written at once they would be in memory three times, as message, as its encoding, and as bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import Message

from qil_deploy.errors import CertificateError
from qil_deploy.onnx_io import METADATA_KEY

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # numbers of ModelProto.graph, GraphProto.initializer, TensorProto.raw_data
_MOST_BYTES = 2**31 - 1  # of one protobuf message


def write_graph(model: ir.Model, path: Path) -> None:
    """Write a model without metadata, and let ONNX's checker read it back.

    Raises:
        CertificateError: the checker refuses the graph, or it is too large for an ONNX file.
    """
    with path.open("wb") as file:
        _write(model, file)
    try:
        onnx.checker.check_model(path if _is_unicode(path) else path.read_bytes(), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CertificateError(f"ONNX's checker refuses the graph: {error}") from error


def _is_unicode(path: Path) -> bool:
    """Return whether the checker can open a path: it takes only UTF-8 names, which files need not have."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def append_metadata(path: Path, metadata: dict[str, Any]) -> None:
    """Append metadata to a graph that has none; the content of the file stays unchanged."""
    entry = onnx.StringStringEntryProto(key=METADATA_KEY, value=metadata_text(metadata))
    with path.open("ab") as file:
        file.write(onnx.ModelProto(metadata_props=[entry]).SerializeToString())


def metadata_text(metadata: dict[str, Any]) -> str:
    """Return metadata in the form stored in files."""
    return json.dumps(metadata, separators=(",", ":"))


def _write(model: ir.Model, file: IO[bytes]) -> None:
    tensors = _tensors_of(model)
    message = _without_tensors(model)
    before, behind = (_fields(message.graph, numbers) for numbers in (range(_INITIALIZER), range(_INITIALIZER + 1, 99)))
    heads = [_head(tensor) for tensor in tensors]
    sizes = [len(head) + tensor.nbytes for head, tensor in zip(heads, tensors, strict=True)]
    graph_size = len(before) + sum(len(_prefix(_INITIALIZER, size)) + size for size in sizes) + len(behind)
    if graph_size > _MOST_BYTES:
        raise CertificateError(
            f"the file would have {graph_size:,} bytes; an ONNX file holds {_MOST_BYTES:,}. Store weights packed."
        )
    file.write(_fields(message, range(_GRAPH)) + _prefix(_GRAPH, graph_size) + before)
    for head, size, tensor in zip(heads, sizes, tensors, strict=True):
        file.write(_prefix(_INITIALIZER, size) + head)
        file.write(_content(tensor))
    file.write(behind + _fields(message, range(_GRAPH + 1, 99)))


def _tensors_of(model: ir.Model) -> list[ir.TensorProtocol]:
    """Return the initializers in order, with their names in the graph."""
    tensors = []
    for value in model.graph.initializers.values():
        if value.const_value is None:
            raise ValueError(f"initializer {value.name!r} has no content")
        value.const_value.name = value.name
        tensors.append(value.const_value)
    return tensors


def _without_tensors(model: ir.Model) -> onnx.ModelProto:
    """Return the message of a model, its graph without initializers."""
    values = list(model.graph.initializers.values())
    contents = [value.const_value for value in values]
    try:
        for value in values:
            value.const_value = ir.tensor(np.zeros(0, np.int8), name=value.name)
        message = ir.to_proto(model)
    finally:
        for value, content in zip(values, contents, strict=True):
            value.const_value = content
    message.graph.ClearField("initializer")
    return message


def _head(tensor: ir.TensorProtocol) -> bytes:
    """Return the bytes before the content of a tensor, whose other fields all have lower numbers."""
    message = onnx.TensorProto(name=tensor.name, data_type=tensor.dtype.value, dims=tensor.shape.numpy())
    return bytes(message.SerializeToString()) + _prefix(_RAW_DATA, tensor.nbytes)


def _content(tensor: ir.TensorProtocol) -> bytes:
    content = tensor.tobytes()
    if len(content) != tensor.nbytes:
        raise ValueError(f"{tensor.name!r} has {len(content)} bytes where {tensor.nbytes} belong")
    return content


def _fields(message: Message, numbers: range) -> bytes:
    """Return some fields of a message, encoded."""
    part = type(message)()
    part.CopyFrom(message)
    for field in message.DESCRIPTOR.fields:
        if field.number not in numbers:
            part.ClearField(field.name)
    return bytes(part.SerializeToString())


def _prefix(field: int, size: int) -> bytes:
    """Return the tag of a field whose content is `size` bytes."""
    return bytes([*_varint(field << 3 | 2), *_varint(size)])


def _varint(number: int) -> Iterator[int]:
    """Yield a number in groups of seven bits, the lowest first; a set eighth bit says that more follow."""
    while number > 127:
        yield number & 127 | 128
        number >>= 7
    yield number
