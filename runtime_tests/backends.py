"""Backends that compute an exported model: their names, and how to read every code of each.

A backend is named in reports and found by that name: the integer reference, ONNX Runtime at an optimization level, or
one that the caller supplies, such as frozen PyTorch (this package needs no torch). Its codes are all its tensors, by
their names in the exported graph; the last of them are the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qil_deploy.onnx_io import Node, kept_parts, read_metadata, with_outputs
from qil_deploy.reference import IntegerReference

from .exported_model import ExportedModel
from .kernel_library import KernelLibrary
from .sessions import OPTIMIZATION_LEVELS, create_session

REFERENCE = "integer reference"
FROZEN = "frozen PyTorch"
UNFROZEN = "unfrozen PyTorch"
GOLDEN = "golden vectors"

CodeReader = Callable[[NDArray[np.uint8]], Mapping[str, NDArray[Any]]]
"""From uint8 images [N, C, H, W] to tensors by their names in the exported graph, the outputs among them."""


def onnx_backend_name(level: str, *, kernels: bool = False) -> str:
    """Name in reports of ONNX Runtime at one graph-optimization level, perhaps with the kernel library."""
    return f"ONNX Runtime ({level}, kernels)" if kernels else f"ONNX Runtime ({level})"


def exact_levels(format_: str) -> tuple[str, ...]:
    """Return the optimization levels at which a file of this format must equal the integer reference.

    Where ONNX Runtime does not fuse a QDQ file, it computes in float.
    """
    return tuple(OPTIMIZATION_LEVELS) if format_ == "qlinear" else ("all",)


@dataclass(frozen=True, kw_only=True)
class ExecutedGraph:
    """Operators of a model that are executed, in order.

    Attributes:
        nodes: those of the integer reference, which takes a QDQ file as the operators it is fused to; all of the
            file's where only the file can say (`paper` placement).
        codes: the tensors of these nodes that the file has, too; in `paper` placement those that QuantizeLinear makes.
        layers: names of the network's layers, from the metadata.
        rearranged: tensors that in PyTorch hold other codes than a tensor of their name in the file, if it has one:
            passes merged them with others, clip them later or have their elements in another order.
    """

    nodes: tuple[Node, ...]
    codes: tuple[str, ...]
    layers: frozenset[str]
    rearranged: frozenset[str]

    @classmethod
    def of(cls, model: ExportedModel) -> ExecutedGraph:
        """Read the graph of a model.

        Raises:
            ModelFileError: the integer reference refuses the model, or its metadata are damaged.
        """
        in_file = tensors_of_images(model)
        outputs = model.output_names
        if model.float_parts and not kept_parts(model.graph):
            nodes = model.graph.nodes
            codes = [n.outputs[0] for n in nodes if n.op_type == "QuantizeLinear" or n.outputs[0] in outputs]
        else:
            nodes = IntegerReference(model.graph).nodes
            codes = [n.outputs[0] for n in nodes if n.outputs[0] in in_file]
        metadata = read_metadata(model.graph)
        layers = frozenset(layer.get("name", "") for layer in metadata.get("layers", ()))
        passes = metadata.get("passes", {})
        moved = frozenset(map(str, passes.get("channels_last", ())))
        # Files of earlier versions may have a tensor of such a name, whose codes are not clipped yet.
        merged = frozenset(map(str, passes.get("simplify", ())))
        return cls(
            nodes=nodes,
            codes=(*(name for name in codes if name not in outputs), *outputs),
            layers=layers,
            rearranged=(moved - layers) | merged,
        )


def tensors_of_images(model: ExportedModel) -> set[str]:
    """Return the names of all computed tensors of a file that have one row or map for each image.

    Others are the pixels of all images as rows, where a linear layer reads them (`export.passes.dense_floats`).
    """
    rows: set[str] = set()
    for node in model.graph.nodes:
        if node.op_type != "Reshape":
            rows.update(node.outputs if rows.intersection(node.inputs) else ())
        elif len(node.inputs) > 1 and (shape := model.graph.initializers.get(node.inputs[1])) is not None:
            rows.update(node.outputs if shape.shape == (2,) and shape[0] == -1 else ())
    return {name for node in model.graph.nodes for name in node.outputs} - rows


def code_reader(
    model: ExportedModel,
    graph: ExecutedGraph,
    name: str,
    *,
    threads: int,
    others: Mapping[str, CodeReader],
    kernels: KernelLibrary | None = None,
) -> CodeReader:
    """Return a function that computes every code of a backend; None if its codes are not accessible.

    Args:
        model: the exported model.
        graph: what is executed of it.
        name: `REFERENCE`, `onnx_backend_name(LEVEL)`, or another, which has codes if it is in `others`.
        threads: threads of ONNX Runtime.
        others: backends beside these by name.
        kernels: the library of backends with kernels.

    Raises:
        ModelFileError: the model cannot be run.
    """
    if name in others:
        read = others[name]
        return lambda images: {key: value for key, value in read(images).items() if key not in graph.rearranged}
    if name == REFERENCE:
        reference = IntegerReference(model.graph)
        return lambda images: model.in_batches(reference.run_all, images)
    for level in OPTIMIZATION_LEVELS:
        if name == onnx_backend_name(level):
            return _onnx_codes(model, graph, level, threads, None)
        if name == onnx_backend_name(level, kernels=True) and kernels is not None:
            return _onnx_codes(model, graph, level, threads, kernels)
    return lambda _: {}


def _onnx_codes(
    model: ExportedModel, graph: ExecutedGraph, level: str, threads: int, kernels: KernelLibrary | None
) -> CodeReader:
    """Return a function that runs a file in ONNX Runtime with its codes as additional outputs.

    The outputs come from a session of the file as it is, with every fusion that the optimizer finds.
    """
    predict = model.onnx_runner(threads=threads, level=level, kernels=kernels)
    content = with_outputs(model.path.read_bytes(), [name for name in graph.codes if name not in model.output_names])
    session = create_session(model.path, threads=threads, level=level, content=content, kernels=kernels)
    return lambda images: model.run(session, images) | predict(images)
