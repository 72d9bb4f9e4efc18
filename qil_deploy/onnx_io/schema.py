"""The part of the ONNX file format that this project reads, declared for the protobuf library.

Field numbers and types are those of `onnx.proto`; fields that are not declared here are skipped by the
parser.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.message import Message

# message -> field -> (number, type); "*" marks a repeated field. Messages that are refused when present are
# declared as bytes: the parser then notices them without descending into them.
_SCHEMA: dict[str, dict[str, tuple[int, str]]] = {
    "ModelProto": {
        "ir_version": (1, "int64"),
        "graph": (7, "GraphProto"),
        "opset_import": (8, "OperatorSetIdProto*"),
        "metadata_props": (14, "StringStringEntryProto*"),
        "functions": (25, "bytes*"),
    },
    "OperatorSetIdProto": {"domain": (1, "string"), "version": (2, "int64")},
    "StringStringEntryProto": {"key": (1, "string"), "value": (2, "string")},
    "GraphProto": {
        "node": (1, "NodeProto*"),
        "name": (2, "string"),
        "initializer": (5, "TensorProto*"),
        "input": (11, "ValueInfoProto*"),
        "output": (12, "ValueInfoProto*"),
        "sparse_initializer": (15, "bytes*"),
    },
    "FunctionProto": {
        "name": (1, "string"),
        "input": (4, "string*"),
        "output": (5, "string*"),
        "attribute": (6, "string*"),
        "node": (7, "NodeProto*"),
        "opset_import": (9, "OperatorSetIdProto*"),
        "domain": (10, "string"),
        "attribute_proto": (11, "bytes*"),
    },
    "NodeProto": {
        "input": (1, "string*"),
        "output": (2, "string*"),
        "name": (3, "string"),
        "op_type": (4, "string"),
        "attribute": (5, "AttributeProto*"),
        "domain": (7, "string"),
    },
    "AttributeProto": {
        "name": (1, "string"),
        "f": (2, "float"),
        "i": (3, "int64"),
        "s": (4, "bytes"),
        "t": (5, "TensorProto"),
        "g": (6, "bytes"),
        "floats": (7, "float*"),
        "ints": (8, "int64*"),
        "strings": (9, "bytes*"),
        "graphs": (11, "bytes*"),
        "type": (20, "int32"),
        "ref_attr_name": (21, "string"),
    },
    "TensorProto": {
        "dims": (1, "int64*"),
        "data_type": (2, "int32"),
        "segment": (3, "bytes"),
        "float_data": (4, "float*"),
        "int32_data": (5, "int32*"),
        "int64_data": (7, "int64*"),
        "name": (8, "string"),
        "raw_data": (9, "bytes"),
        "double_data": (10, "double*"),
        "uint64_data": (11, "uint64*"),
        "external_data": (13, "bytes*"),
        "data_location": (14, "int32"),
    },
    "ValueInfoProto": {"name": (1, "string"), "type": (2, "TypeProto")},
    "TypeProto": {"tensor_type": (1, "TypeProtoTensor")},
    "TypeProtoTensor": {"elem_type": (1, "int32"), "shape": (2, "TensorShapeProto")},
    "TensorShapeProto": {"dim": (1, "Dimension*")},
    "Dimension": {"dim_value": (1, "int64"), "dim_param": (2, "string")},
}


def parse_model(content: bytes) -> Message:
    """Parse a file's bytes to a ModelProto.

    Raises:
        google.protobuf.message.DecodeError: the bytes are no protobuf message of this kind.
    """
    return _message_class("ModelProto").FromString(content)


def parse_message(kind: str, content: bytes) -> Message:
    """Parse the bytes of a part of a file that `_SCHEMA` declares as bytes: a subgraph, a function, an entry.

    Raises:
        google.protobuf.message.DecodeError: the bytes are no message of this kind.
    """
    return _message_class(kind).FromString(content)


def with_outputs(content: bytes, names: Iterable[str]) -> bytes:
    """Return a model's bytes with additional tensors as graph outputs.

    Protobuf merges what follows a message into it: a second graph that has only outputs adds them. It is encoded
    here, since a device that runs golden vectors may have no protobuf.
    """
    outputs = [_encode(12, _encode(1, name.encode())) for name in names]  # GraphProto.output, ValueInfoProto.name
    return content + _encode(7, b"".join(outputs)) if outputs else content  # ModelProto.graph


def _encode(number: int, content: bytes) -> bytes:
    """Encode a field that holds bytes: its number and type, its length as a varint, the bytes."""
    size, length = len(content), bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + content


@cache
def _message_class(kind: str) -> Any:  # noqa: ANN401 - protobuf's messages are untyped
    """Return the class of one kind of message."""
    from google.protobuf import message_factory

    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"qil_deploy_onnx.{kind}"))


@cache
def _pool() -> Any:  # noqa: ANN401 - as above
    """Declare `_SCHEMA` in a pool of its own, where the `onnx` package's declarations cannot collide.

    protobuf is loaded for the first file, not when this package is imported.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool

    types = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="qil_deploy_onnx.proto", package="qil_deploy_onnx", syntax="proto2")
    for message_name, fields in _SCHEMA.items():
        message = file.message_type.add(name=message_name)
        for field_name, (number, kind) in fields.items():
            base = kind.rstrip("*")
            declared = message.field.add(name=field_name, number=number)
            declared.label = types.LABEL_REPEATED if kind.endswith("*") else types.LABEL_OPTIONAL
            if base in _SCHEMA:
                declared.type, declared.type_name = types.TYPE_MESSAGE, f".qil_deploy_onnx.{base}"
            else:
                declared.type = types.Type.Value(f"TYPE_{base.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool
