"""Float parts of an exported file in `integer` placement, found by their names and cut out as one node each.

The metadata lists the names (`float_parts`). A part reads codes, and its nodes are called `name/...`: DequantizeLinear,
float operators, QuantizeLinear. Around it everything is integers. Needs neither torch nor onnx.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnxruntime

from qil_deploy.errors import ModelFileError
from qil_deploy.untrusted_text import excerpt

from .metadata import read_metadata
from .model_file import Node, OnnxFile
from .schema import with_outputs

PART_DOMAIN, PART_OPERATOR = "qil", "Float"


def inner_name(part: str, name: str) -> str:
    """Return the name in the file of a tensor or node inside a part."""
    return f"{part}/{name}"


def is_inside(part: str, name: str) -> bool:
    """Whether a tensor or node of this name lies inside a part."""
    return name.startswith(f"{part}/")


def kept_parts(model: OnnxFile) -> tuple[str, ...]:
    """Return the names of the float parts of a file in `integer` placement; none for any other file."""
    metadata = read_metadata(model)
    return tuple(metadata.get("float_parts", ())) if metadata.get("placement") == "integer" else ()


def cut_out_parts(model: OnnxFile) -> tuple[Node, ...]:
    """Return the nodes of a file, each float part as one node `qil.Float` from codes to codes.

    Raises:
        ModelFileError: a part reads anything but codes through DequantizeLinear and constants, or more than the codes
            of one QuantizeLinear leave it.
    """
    kept = kept_parts(model)
    if not kept:
        return model.nodes
    inside: dict[str, list[Node]] = {part: [] for part in kept}
    read: dict[str, set[str | None]] = {info.name: {None} for info in model.outputs}
    owners = [_owner(inside, node.name) for node in model.nodes]
    for node, owner in zip(model.nodes, owners, strict=True):
        if owner is not None:
            inside[owner].append(node)
        for name in node.inputs:
            read.setdefault(name, set()).add(owner)
    wholes = {id(last): whole for last, whole in (_cut_out(model, inside[part], part, read) for part in inside)}
    nodes = [node if owner is None else wholes.get(id(node)) for node, owner in zip(model.nodes, owners, strict=True)]
    return tuple(node for node in nodes if node is not None)


def _owner(parts: Collection[str], name: str) -> str | None:
    """Return the part that contains a node of this name."""
    end = name.find("/")
    while end >= 0:
        if name[:end] in parts:
            return name[:end]
        end = name.find("/", end + 1)
    return None


def _cut_out(model: OnnxFile, inside: list[Node], part: str, read: Mapping[str, set[str | None]]) -> tuple[Node, Node]:
    """Return the last node of a part, and all of its nodes as one; `read` maps a tensor to the parts that read it."""
    made = {output: node for node in inside for output in node.outputs}
    leaving = [name for name in made if read.get(name, set()) - {part}]
    reading = [
        (node, name)
        for node in inside
        for name in node.inputs
        if name and name not in made and name not in model.initializers
    ]
    if any(node.op_type != "DequantizeLinear" or name != node.inputs[0] for node, name in reading):
        raise ModelFileError(f"{model.path}: {excerpt(repr(part))} reads more than dequantized codes; export it again.")
    if not reading or len(leaving) != 1 or made[leaving[0]].op_type != "QuantizeLinear":
        raise ModelFileError(f"{model.path}: {excerpt(repr(part))} does not lead from codes to codes; export it again.")
    sources = tuple(dict.fromkeys(name for _, name in reading))
    whole = Node(op_type=PART_OPERATOR, domain=PART_DOMAIN, name=part, inputs=sources, outputs=(leaving[0],))
    return made[leaving[0]], whole


def part_shapes(model: OnnxFile, names: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors of a file for one image: ONNX Runtime runs it on a blank one.

    Raises:
        ModelFileError: ONNX Runtime cannot run the file.
    """
    if not names:
        return {}
    image = model.inputs[0]
    shape = [size if isinstance(size, int) else 1 for size in image.shape or ()]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        content = with_outputs(model.path.read_bytes(), names)
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        results = session.run(list(names), {image.name: np.zeros(shape, image.dtype)})
    except Exception as error:  # ONNX Runtime's own types share no base class
        raise ModelFileError(f"ONNX Runtime cannot run {model.path}: {excerpt(str(error), 400)}.") from error
    return {name: (1, *np.shape(result)[1:]) for name, result in zip(names, results, strict=True)}
