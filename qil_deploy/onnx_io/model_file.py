"""Read an ONNX file with numpy and protobuf alone.

A device that verifies a model has ONNX Runtime but not the `onnx` package. ONNX Runtime brings protobuf, and
an ONNX file is one protobuf message.

Files come from anywhere: sizes are checked against the bytes that are there before an array is made of them,
and every defect is a `ModelFileError` that names the file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qil_deploy.errors import ModelFileError
from qil_deploy.untrusted_text import excerpt

from .kernel_operators import check_calls, check_functions
from .schema import parse_model
from .tensors import DATA_TYPES, Array, DefectError, convert_tensor, data_type

if TYPE_CHECKING:
    from google.protobuf.message import Message

Attribute = int | float | str | list[int] | list[float] | list[str] | Array

# AttributeProto.AttributeType: number -> field that holds the value.
_ATTRIBUTE_FIELDS = {1: "f", 2: "i", 3: "s", 4: "t", 6: "floats", 7: "ints", 8: "strings"}

UNREAD = "unread"  # the type of what was left out

_MAX_FILE_BYTES = 2**31 - 1  # what one protobuf message may hold


@dataclass(frozen=True)
class Node:
    """One operator of the graph; an optional input or output that is left out has the name ''."""

    op_type: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Attribute] = field(default_factory=dict)


@dataclass(frozen=True)
class TensorInfo:
    """A graph input or output.

    Attributes:
        name: the tensor's name.
        dtype: its element type by numpy's name ("uint8", "float32"); `UNREAD` where it has none and was left out.
        shape: one entry per dimension: a size, the name of a symbolic size, or None where nothing is said;
            None instead of a tuple where not even the rank is.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class OnnxFile:
    """The content of an ONNX file.

    Attributes:
        path: the file it was read from, for messages.
        nodes: the operators in the file's (topological) order.
        initializers: constants by name, read-only. Elements below 8 bits are widened to int8 or uint8.
        stored_types: the type of each initializer in the file, read or left out: a numpy name, "int4", "uint4", "int2"
            or "uint2"; `UNREAD` for any other.
        inputs: graph inputs that are no initializers.
        outputs: graph outputs.
        metadata: the model's metadata properties.
        opsets: opset version by domain; the standard domain is ''.
        ir_version: version of the file format.
        bytes: size of the file.
    """

    path: Path
    nodes: tuple[Node, ...]
    initializers: dict[str, Array]
    stored_types: dict[str, str]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    metadata: dict[str, str]
    opsets: dict[str, int]
    ir_version: int
    bytes: int = 0


def read_model(path: Path, *, left_out: list[str] | None = None) -> OnnxFile:
    """Read the ONNX file at `path`.

    Args:
        path: the file.
        left_out: takes one sentence for each part that is not supported or is damaged; the part is left out of the
            result instead of refused.

    Raises:
        ModelFileError: there is no such file, it is a folder, it is truncated or not ONNX, or (without `left_out`) it
            uses what is not supported: external data, subgraphs, functions other than those of `kernel_operators`,
            sparse tensors, element types unknown to numpy.
    """
    message = parse_file(path)
    try:
        with _leaving_out(left_out):
            check_calls(message)
    except DefectError as defect:
        raise ModelFileError(f"{path}: {defect}") from defect
    return convert_model(path, message, left_out=left_out)


def parse_file(path: Path) -> Message:
    """Parse the ONNX file at `path` to a protobuf message, without checking its content.

    Raises:
        ModelFileError: there is no such file, it is a folder, it is truncated or not ONNX.
    """
    from google.protobuf.message import DecodeError  # a device that only runs files needs no protobuf

    content = _read_bytes(path)
    try:
        return parse_model(content)
    except DecodeError as error:
        raise ModelFileError(
            f"{path} is not an ONNX file or is truncated ({len(content)} bytes). Export or copy it again."
        ) from error


def convert_model(path: Path, model: Message, *, left_out: list[str] | None = None) -> OnnxFile:
    """Check and convert what `parse_file` returns, or a part of it; arguments and errors are those of `read_model`."""
    try:
        return _convert_model(path, model, left_out)
    except UnicodeDecodeError as error:
        raise ModelFileError(
            f"{path} is damaged: it holds a name that is not UTF-8. Export or copy it again."
        ) from error
    except DefectError as defect:
        raise ModelFileError(f"{path}: {defect}") from defect


def loadable(path: Path) -> str | bytes:
    """Return the argument by which ONNX Runtime loads a file: its name, or its content if the name is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return path.read_bytes()
    return str(path)


def _read_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ModelFileError(f"{path} is a folder; name an ONNX file.")
        if path.exists() and not path.is_file():
            raise ModelFileError(f"{path} is a device or a pipe, which may never end; name an ONNX file.")
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ModelFileError(f"{path} has {path.stat().st_size} bytes; an ONNX file has at most {_MAX_FILE_BYTES}.")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ModelFileError(f"{path} does not exist; name an ONNX file.") from error
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.") from error


@contextlib.contextmanager
def _leaving_out(left_out: list[str] | None) -> Iterator[None]:
    """Append a defect to `left_out` if that is a list."""
    try:
        yield
    except (DefectError, UnicodeDecodeError) as defect:
        if left_out is None:
            raise
        left_out.append(str(defect))


def _convert_model(path: Path, model: Message, left_out: list[str] | None) -> OnnxFile:
    if model.ir_version < 1 or not model.HasField("graph") or not model.opset_import:
        raise DefectError(
            "not an ONNX file or truncated: it has no graph, IR version or opset. Export or copy it again."
        )
    graph = model.graph
    with _leaving_out(left_out):
        check_functions(model)
    with _leaving_out(left_out):
        if graph.sparse_initializer:
            raise DefectError("sparse initializers are not supported; store them dense.")
    initializers: dict[str, Array] = {}
    stored_types: dict[str, str] = {}
    for tensor in graph.initializer:
        name = _text(tensor.name)
        if name in stored_types:
            raise DefectError(f"two initializers are called {excerpt(repr(name))}; names must be unique.")
        stored_types[name] = DATA_TYPES.get(tensor.data_type, (UNREAD,))[0]
        with _leaving_out(left_out):
            initializers[name] = convert_tensor(tensor, f"initializer {excerpt(repr(name))}")
    return OnnxFile(
        path=path,
        nodes=tuple(_convert_node(node, left_out) for node in graph.node),
        initializers=initializers,
        stored_types=stored_types,
        inputs=tuple(_convert_info(info, left_out) for info in graph.input if info.name not in stored_types),
        outputs=tuple(_convert_info(info, left_out) for info in graph.output),
        metadata={_text(entry.key): _text(entry.value) for entry in model.metadata_props},
        opsets={_plain_domain(_text(opset.domain)): opset.version for opset in model.opset_import},
        ir_version=model.ir_version,
        bytes=model.ByteSize(),
    )


def _text(value: str | bytes) -> str:
    """Return a string field; protobuf returns bytes for one that is not UTF-8, which raises UnicodeDecodeError here."""
    return value.decode() if isinstance(value, bytes) else value


def _plain_domain(domain: str) -> str:
    """Map 'ai.onnx', the standard domain's other name, to ''."""
    return "" if domain == "ai.onnx" else domain


def _convert_node(node: Message, left_out: list[str] | None) -> Node:
    name, op_type = _text(node.name), _text(node.op_type)
    where = f"node {excerpt(repr(name))} ({excerpt(op_type)})"
    if not node.output:
        raise DefectError(f"{where} has no output. The file is damaged; export it again.")
    attributes: dict[str, Attribute] = {}
    for attribute in node.attribute:
        with _leaving_out(left_out):
            attributes[_text(attribute.name)] = _convert_attribute(attribute, where)
    return Node(
        op_type=op_type,
        domain=_plain_domain(_text(node.domain)),
        name=name,
        inputs=tuple(map(_text, node.input)),
        outputs=tuple(map(_text, node.output)),
        attributes=attributes,
    )


def _convert_attribute(attribute: Message, where: str) -> Attribute:
    where = f"attribute {excerpt(repr(attribute.name))} of {where}"
    if attribute.HasField("g") or attribute.graphs:
        raise DefectError(f"{where} is a subgraph; control flow is not supported.")
    if attribute.type not in _ATTRIBUTE_FIELDS:
        raise DefectError(
            f"{where} has type number {attribute.type}; supported are numbers, strings, lists of "
            f"them and tensors ({', '.join(map(str, _ATTRIBUTE_FIELDS))})."
        )
    value = getattr(attribute, _ATTRIBUTE_FIELDS[attribute.type])
    match attribute.type:
        case 3:
            return str(value.decode())
        case 4:
            return convert_tensor(value, where)
        case 8:
            return [text.decode() for text in value]
        case 6 | 7:
            return list(value)
        case _:
            return value  # type: ignore[no-any-return]  # protobuf's messages are untyped; this is an int or a float


def _convert_info(info: Message, left_out: list[str] | None) -> TensorInfo:
    try:
        return _convert_tensor_info(info)
    except DefectError as defect:
        if left_out is None:
            raise
        left_out.append(str(defect))
    return TensorInfo(name=_text(info.name), dtype=UNREAD, shape=None)


def _convert_tensor_info(info: Message) -> TensorInfo:
    where = f"graph input or output {excerpt(repr(info.name))}"
    if not info.type.HasField("tensor_type"):
        raise DefectError(f"{where} is not a tensor; only tensors are supported.")
    tensor = info.type.tensor_type
    shape = tuple(_convert_dimension(dimension) for dimension in tensor.shape.dim) if tensor.HasField("shape") else None
    return TensorInfo(name=_text(info.name), dtype=data_type(tensor.elem_type, where)[0], shape=shape)


def _convert_dimension(dimension: Message) -> int | str | None:
    if dimension.HasField("dim_value"):
        return int(dimension.dim_value)
    return _text(dimension.dim_param) or None
