"""What ONNX Runtime really executes for a file, after its own optimizer has fused, moved and folded the graph.

`float_kernels` tells which of it computes in float, by what every tensor holds. ONNX Runtime's kernels for integers
take and return codes, and there is nothing to say about them. Around them, four kinds of float tensors are allowed:

    image       the network's input, which only QuantizeLinear may read
    exact       integers in float32, below 2**24: Cast of codes, moves of them, MatMulNBits (certificate line `matmul`)
    scaled      an exact integer times a constant, rounded once, as QLinearConv and QGemm do inside: QuantizeLinear may
                read it, and it may be the logits
    logits      what DequantizeLinear makes of codes: nothing but moves may follow

Every other operator that reads or makes a float tensor computes in float, and so do those on codes that approximate a
function or round a product (QLinearSigmoid, QLinearMul, which ONNX Runtime makes of what is kept in float). Moves and
quantizers behind it are not to blame.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from enum import Enum, auto
from pathlib import Path

import onnxruntime

from qil_deploy.errors import ModelFileError

from .model_file import Node, OnnxFile, loadable, read_model
from .tensors import DATA_TYPES


class Content(Enum):
    """What a tensor holds."""

    CONSTANT = auto()
    CODES = auto()
    IMAGE = auto()
    EXACT = auto()
    SCALED = auto()
    LOGITS = auto()
    FLOAT = auto()


_INTEGER_KERNELS = frozenset(
    {
        "QLinearConv",
        "QLinearAdd",
        "QLinearGlobalAveragePool",
        "Clip",
        "MaxPool",
        "NhwcMaxPool",  # what ONNX Runtime makes of MaxPool between convolutions
        "Concat",
        "Resize",
        "ReduceSum",
        "Add",
        "Sub",
        "Mul",
    }
)
_FATAL = 4
_MOVES = frozenset(
    {
        *("Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Pad", "Identity"),
        # Of what is kept in float: ONNX Runtime lets them move codes where nothing but moves is left of a part.
        *("Slice", "Gather", "Split", "Expand", "Tile", "DepthToSpace", "SpaceToDepth"),
    }
)
_CODES = frozenset({Content.CODES})


def optimized_model(path: Path) -> OnnxFile:
    """Return the graph that the CPU execution provider runs for a file at the default optimization level.

    Raises:
        ModelFileError: ONNX Runtime cannot load the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        try:
            write_optimized_model(path, optimized)
        except Exception as error:  # ONNX Runtime's errors share no base class below Exception
            reason = " ".join(str(error).split()).rstrip(".")
            raise ModelFileError(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {reason}.") from error
        return read_model(optimized)


def write_optimized_model(path: Path, optimized: Path) -> None:
    """Write the graph that the CPU execution provider runs for a file at the default optimization level."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.optimized_model_filepath = str(optimized)
    # Without the fallback, which prints to the screen and tries the same again.
    onnxruntime.InferenceSession(loadable(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)


def executed_operators(path: Path) -> list[tuple[str, str]]:
    """Return (operator, node name) of everything that is executed."""
    return [(node.op_type, node.name) for node in optimized_model(path).nodes]


def float_kernels(path: Path) -> list[tuple[str, str]]:
    """Return (operator, node name) of what `optimized_model` computes in float (module docstring)."""
    return [(node.op_type, node.name) for node in float_nodes(optimized_model(path))]


def float_nodes(graph: OnnxFile) -> list[Node]:
    """Return the nodes of an optimized graph that compute in float (module docstring)."""
    return list(_float_nodes(graph))


def _float_nodes(graph: OnnxFile) -> Iterator[Node]:
    contents = dict.fromkeys(graph.stored_types, Content.CONSTANT)
    for image in graph.inputs:
        contents[image.name] = Content.CODES if image.dtype == "uint8" else Content.IMAGE
    for node in graph.nodes:
        inputs = [contents.get(name, Content.FLOAT) for name in node.inputs if name]
        found = _result(node, inputs)
        # Whatever it did to make them, what comes out of these are codes.
        makes_codes = node.op_type == "QuantizeLinear" or node.op_type.startswith("QLinear")
        contents.update(dict.fromkeys(node.outputs, Content.CODES if makes_codes else found))
        if found is Content.FLOAT and not (node.op_type in _MOVES and Content.FLOAT in inputs):
            yield node


def _result(node: Node, inputs: list[Content]) -> Content:
    """Return what an operator makes of inputs that hold this; FLOAT if it computes in float."""
    data = frozenset(inputs) - {Content.CONSTANT}
    if not data:
        return Content.CONSTANT
    if node.op_type in _INTEGER_KERNELS and data == _CODES:
        return Content.CODES
    if node.op_type in _MOVES and len(data) == 1 and data != {Content.IMAGE}:
        return next(iter(data))
    if node.op_type == "QGemm" and data == _CODES:
        return Content.CODES if len(inputs) > 7 else Content.SCALED
    if node.op_type == "Cast":
        return _cast(node, data)
    return _AROUND_INTEGERS.get((node.op_type, data), Content.FLOAT)


def _cast(node: Node, data: frozenset[Content]) -> Content:
    to = node.attributes.get("to", 0)
    name = DATA_TYPES[to][0] if isinstance(to, int) and to in DATA_TYPES else ""
    is_integer = name.startswith(("int", "uint"))
    if data <= {Content.CODES, Content.EXACT}:
        return Content.CODES if is_integer else Content.EXACT
    return Content.FLOAT


_AROUND_INTEGERS = {
    ("QuantizeLinear", frozenset({Content.IMAGE})): Content.CODES,
    ("QuantizeLinear", frozenset({Content.SCALED})): Content.CODES,
    ("QuantizeLinear", frozenset({Content.FLOAT})): Content.CODES,
    ("MatMulNBits", frozenset({Content.EXACT})): Content.EXACT,
    ("Mul", frozenset({Content.EXACT})): Content.SCALED,
    ("DequantizeLinear", _CODES): Content.LOGITS,
}
