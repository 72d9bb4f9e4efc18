"""Read all graphs of an ONNX file: the main graph, the bodies of branches and loops, and those of functions.

Initializers in files beside the model are read, too (external_data.py). What cannot be read is named, not refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError, Message

from qil_deploy.onnx_io import (
    DATA_TYPES,
    UNREAD,
    Array,
    DefectError,
    Node,
    OnnxFile,
    TensorInfo,
    convert_model,
    convert_tensor,
    parse_file,
    parse_message,
)

from .element_types import infer_types
from .external_data import OutsideError, is_external, read_external
from .findings import label, quoted
from .graphs import Graph, link

_DEEPEST: Final = 16  # graphs in graphs
_STRING: Final = 8  # the element type of texts, which hold no numbers
_BFLOAT16: Final = 16
# Element types that NumPy does not have.
_OTHER_TYPES: Final = {
    8: "string", 14: "complex64", 15: "complex128", 16: "bfloat16", 17: "float8e4m3fn", 18: "float8e4m3fnuz",
    19: "float8e5m2", 20: "float8e5m2fnuz", 23: "float4e2m1", 24: "float8e8m0",
}  # fmt: skip
_OVERRIDABLE_SINCE: Final = 4  # IR version: before, every initializer had to be an input as well

Shapes = Mapping[str, Sequence[int | str | None]]


@dataclass
class Unread:
    """Parts of a file that could not be read.

    Attributes:
        parts: a sentence for each part of the file that is left out.
        outside: sentences about data outside the model's folder, which must not be opened.
        external: sentences about other data that should be next to the model.
    """

    parts: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    external: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Subgraph:
    """A graph inside a node: its bytes and its location."""

    content: bytes
    place: str


@dataclass(frozen=True)
class _Taken:
    """Parts removed from a GraphProto because `convert_model` refuses them."""

    subgraphs: list[_Subgraph] = field(default_factory=list)
    types: dict[str, str] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    inputs: list[TensorInfo] = field(default_factory=list)
    outputs: list[TensorInfo] = field(default_factory=list)


def read_graphs(
    path: Path,
    unread: Unread,
    *,
    folder: Path | None = None,
    types: Mapping[str, str] | None = None,
    shapes: Shapes | None = None,
) -> list[Graph]:
    """Return the main graph of the file at `path` and all graphs inside it.

    Args:
        path: the file.
        unread: records what cannot be read.
        folder: where the model's external data are; by default, its own folder.
        types: element types of tensors of the main graph, where they are known.
        shapes: shapes of tensors of the main graph, where they are known.

    Raises:
        ModelFileError: there is no such file, or it is damaged, truncated or no ONNX file.
    """
    message = parse_file(path)
    functions = list(message.functions)
    message.ClearField("functions")
    reader = _Reader(path, folder or path.parent, unread)
    graphs = list(reader.read(message, types=types or {}, shapes=shapes or {}))
    return [*graphs, *(graph for content in functions for graph in reader.read_function(message, content))]


@dataclass(frozen=True)
class _Reader:
    """Reads graphs of one file; the attributes are arguments of `read_graphs`."""

    path: Path
    folder: Path
    unread: Unread

    def read(
        self,
        message: Message,
        *,
        types: Mapping[str, str],
        shapes: Shapes,
        place: str = "",
        around: Sequence[Graph] = (),
    ) -> Iterator[Graph]:
        """Yield the graph of a ModelProto and those inside it; `around` are the outer ones, the innermost first."""
        taken = self._take(message.graph, place)
        file = convert_model(self.path, message, left_out=self.unread.parts)
        file = _completed(file, taken)
        overridable = {info.name for info in message.graph.input} & file.stored_types.keys()
        if around:
            file = _with_outer(file, around)
        graph = link(
            file,
            types=infer_types(file, types),
            shapes={**{info.name: info.shape for info in file.inputs if info.shape is not None}, **shapes},
            place=place,
            overridable=frozenset(overridable if file.ir_version >= _OVERRIDABLE_SINCE else ()),
        )
        yield graph
        for subgraph in taken.subgraphs:
            if len(around) >= _DEEPEST:
                self.unread.parts.append(f"{subgraph.place}graphs deeper than {_DEEPEST} levels.")
            elif (inner := self._model(message, subgraph)) is not None:
                yield from self.read(inner, types={}, shapes={}, place=subgraph.place, around=(graph, *around))

    def read_function(self, message: Message, content: bytes) -> Iterator[Graph]:
        """Yield the body of a FunctionProto, and the graphs inside it."""
        try:
            function = parse_message("FunctionProto", content)
        except DecodeError:
            self.unread.parts.append("a function that is damaged.")
            return
        inner = self._empty(message)
        inner.graph.node.extend(function.node)
        yield from self.read(inner, types={}, shapes={}, place=f"in function {quoted(str(function.name))}: ")

    def _model(self, message: Message, subgraph: _Subgraph) -> Message | None:
        """Return a ModelProto whose graph is a subgraph of another."""
        inner = self._empty(message)
        try:
            inner.graph.ParseFromString(subgraph.content)
        except DecodeError:
            self.unread.parts.append(f"{subgraph.place}a graph that is damaged.")
            return None
        return inner

    def _empty(self, message: Message) -> Message:
        inner = type(message)()
        inner.ir_version = message.ir_version
        inner.opset_import.extend(message.opset_import)
        inner.graph.name = ""
        return inner

    def _take(self, graph: Message, place: str) -> _Taken:
        """Remove subgraphs, data in other files and texts from a GraphProto."""
        taken = _Taken()
        for node in graph.node:
            for index in reversed(range(len(node.attribute))):
                attribute = node.attribute[index]
                if not (attribute.HasField("g") or attribute.graphs):
                    continue
                contents = [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
                where = f"{place}in {quoted(str(attribute.name))[1:-1]} of {_node_label(node)}: "
                taken.subgraphs[:0] = [_Subgraph(content, where) for content in contents]
                del node.attribute[index]
        for index in reversed(range(len(graph.initializer))):
            if self._take_initializer(graph.initializer[index], taken):
                del graph.initializer[index]
        _take_infos(graph.input, taken.inputs)
        _take_infos(graph.output, taken.outputs)
        return taken

    def _take_initializer(self, tensor: Message, taken: _Taken) -> bool:
        """Remove an initializer if `convert_model` would refuse it; return whether it would."""
        value: Array | None = None
        if is_external(tensor):
            taken.types[tensor.name] = DATA_TYPES.get(tensor.data_type, (UNREAD,))[0]
            value = self._external(tensor)
        elif tensor.data_type in (_STRING, _BFLOAT16):
            taken.types[tensor.name] = _OTHER_TYPES[tensor.data_type]
            value = self._bfloat16(tensor) if tensor.data_type == _BFLOAT16 else None
        else:
            return False
        if value is not None:
            taken.values[tensor.name] = value
        return True

    def _bfloat16(self, tensor: Message) -> Array | None:
        """Convert 16-bit numbers, the upper halves of float32, to floats."""
        halves = type(tensor)()
        halves.CopyFrom(tensor)
        halves.data_type = next(number for number, (name, *_) in DATA_TYPES.items() if name == "uint16")
        try:
            stored = convert_tensor(halves, f"initializer {quoted(str(tensor.name))}")
        except DefectError as error:
            self.unread.parts.append(str(error))
            return None
        return (stored.astype(np.uint32) << 16).view(np.float32)

    def _external(self, tensor: Message) -> Array | None:
        try:
            return read_external(tensor, self.folder)
        except OutsideError as error:
            self.unread.outside.append(str(error))
        except (DefectError, OSError, ValueError) as error:
            self.unread.external.append(str(error))
        return None


def _completed(file: OnnxFile, taken: _Taken) -> OnnxFile:
    """Return a graph with its removed parts added again."""
    return replace(
        file,
        initializers={**file.initializers, **taken.values},
        stored_types={**file.stored_types, **taken.types},
        inputs=tuple(info for info in (*file.inputs, *taken.inputs) if info.name not in taken.types),
        outputs=(*file.outputs, *taken.outputs),
    )


def _take_infos(infos: Any, taken: list[TensorInfo]) -> None:  # noqa: ANN401 - protobuf's lists are untyped
    """Remove inputs or outputs of types that NumPy does not have from a list."""
    for index in reversed(range(len(infos))):
        kind = infos[index].type.tensor_type.elem_type
        if kind in _OTHER_TYPES:
            taken.append(TensorInfo(infos[index].name, _OTHER_TYPES[kind], None))
            del infos[index]


def _with_outer(file: OnnxFile, around: Sequence[Graph]) -> OnnxFile:
    """Return a subgraph with tensors of the surrounding graphs as initializers and inputs of its own."""
    made = {name for node in file.nodes for name in node.outputs} | {info.name for info in file.inputs}
    names = {name for node in file.nodes for name in node.inputs if name} - made - file.stored_types.keys()
    types, values, inputs = {}, {}, []
    for name in sorted(names):
        graph = next((graph for graph in around if name in graph.constants or name in graph.types), None)
        if graph is None or name not in graph.constants:
            inputs.append(TensorInfo(name, graph.types[name] if graph is not None else UNREAD, None))
            continue
        types[name] = graph.type_of(name) or UNREAD
        if (value := graph.stored(name)) is not None:
            values[name] = value
    return replace(
        file,
        initializers={**values, **file.initializers},
        stored_types={**types, **file.stored_types},
        inputs=(*file.inputs, *inputs),
    )


def _node_label(node: Message) -> str:
    return label(Node(str(node.op_type), "", str(node.name), (), tuple(map(str, node.output))))
