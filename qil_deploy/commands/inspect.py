"""`inspect`: show the layers of an exported model, and the kernels that ONNX Runtime executes."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qil_deploy.errors import ModelFileError

from .kernel_option import KernelOption, named_library

if TYPE_CHECKING:
    from qil_deploy.preprocessing import Preprocessing
    from qil_deploy.runtime_tests.explain_kernels import ExplainedKernels
    from qil_deploy.runtime_tests.exported_model import ExportedModel

SCHEMA = "qil_deploy.inspect/1"


def inspect_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The exported model.")],
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write it as JSON, too.")] = None,
    kernels: KernelOption = None,
) -> None:
    """Print an exported model's layers, rewrites, certificate, and the kernels that ONNX Runtime runs.

    With --kernels, also which kernel of the library each layer gets on this processor.
    """
    from qil_deploy.files import ensure_writable, write_text
    from qil_deploy.onnx_io import executed_operators, read_metadata
    from qil_deploy.reference import float_kernels
    from qil_deploy.runtime_tests.affordable import require_affordable
    from qil_deploy.runtime_tests.explain_kernels import explain_kernels
    from qil_deploy.runtime_tests.exported_model import read_exported_model
    from qil_deploy.runtime_tests.layers import describe_layers
    from qil_deploy.terminal import Console

    from .tables import certificate_table, kernel_table, layer_table, rewrite_table

    library = named_library(kernels)
    if json_file is not None:
        ensure_writable(json_file)
    exported = read_exported_model(model)
    metadata = read_metadata(exported.graph)
    quantized = exported.format != "float"
    entries = {"name", "worst", "bound", "where"}
    if quantized and not all(entries <= line.keys() for line in metadata.get("certificate", ({},))):
        raise ModelFileError(
            f"the metadata of {model} has no entry 'certificate' that could be read; export the model again."
        )
    require_affordable(exported)
    layers = describe_layers(exported) if quantized else ()
    executed = executed_operators(model)
    in_float = float_kernels(model) if quantized else []
    explained = None if library is None else explain_kernels(model, library)
    console = Console()
    for line in _heading(exported, metadata):
        console.print(line)
    if quantized:
        console.print(layer_table(layers))
        if metadata.get("left_alone"):
            console.print(rewrite_table(metadata["left_alone"]))
        console.print(certificate_table(metadata["certificate"]))
    console.print(kernel_table(Counter(operator for operator, _ in executed), in_float))
    for line in () if explained is None else _kernel_lines(explained):
        console.print(line, soft_wrap=True)
    if json_file is not None:
        content = {
            "schema": SCHEMA,
            "path": str(model),
            "bytes": model.stat().st_size,
            "opset": exported.graph.opsets[""],
            "metadata": metadata,
            "layers": [asdict(layer) for layer in layers],
            "rewrites": _rewrites(metadata),
            "kernels": [{"operator": operator, "name": name} for operator, name in executed],
            "float_kernels": [{"operator": operator, "name": name} for operator, name in in_float],
        }
        if explained is not None:
            content["kernel_library"] = asdict(explained)
        write_text(json_file, json.dumps(content, indent=2) + "\n")


def _rewrites(metadata: dict[str, Any]) -> list[dict[str, str | bool]]:
    """Return the outcome of each pass for each node that it examined."""
    rewritten = [
        {"node": str(node), "pass": name, "rewritten": True, "because": ""}
        for name, nodes in metadata.get("passes", {}).items()
        for node in nodes
    ]
    left = [
        {"node": node, "pass": name, "rewritten": False, "because": reason}
        for name, reasons in metadata.get("left_alone", {}).items()
        for reason, nodes in reasons.items()
        for node in nodes
    ]
    return [*rewritten, *left]


def _kernel_lines(explained: ExplainedKernels) -> list[str]:
    """Return the lines about a kernel library that follow the tables."""
    choices = [f"  {operator}: {choice}" for operator, choice in explained.choices.items()]
    layers = [f"  {line}" for line in explained.layers]
    return [
        f"Kernel library {explained.library}, on this processor:",
        *choices,
        f"{len(layers)} nodes in kernels of the library",
        *layers,
        *explained.unused,
    ]


def _per_channel(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    means, deviations = (", ".join(f"{value:.6g}" for value in values) for values in (mean, std))
    return f"Normalised per channel: mean {means}; std {deviations} (of pixels in [0, 1])"


def _pictures(pixels: Preprocessing) -> list[str]:
    """Describe how a picture is made into an input image, if the file says so."""
    said = [] if pixels.channel_order is None else [f"channels in the order {pixels.channel_order}"]
    if pixels.resize is not None:
        sides = pixels.resize if isinstance(pixels.resize, tuple) else None
        size = f"the shorter side to {pixels.resize}" if sides is None else f"to {sides[0]}x{sides[1]}"
        said.append(f"resize {size}, cut out the middle {pixels.height}x{pixels.width}")
    if pixels.interpolation is not None:
        said.append(f"{pixels.interpolation} interpolation")
    return [f"Pictures: {', '.join(said)}"] if said else []


def _heading(exported: ExportedModel, metadata: dict[str, Any]) -> list[str]:
    """Return the lines above the tables."""
    from .tables import some_of

    pixels, names = exported.preprocessing, exported.class_names
    batch = exported.graph.inputs[0].shape
    images = f"{batch[0]} images" if batch and isinstance(batch[0], int) else "any number of images"
    size, opset = exported.path.stat().st_size, exported.graph.opsets[""]
    weights = metadata.get("weights", "float32")
    grid = f"scale {pixels.scale:.6g}, zero point {pixels.zero_point}"
    statistics = [] if pixels.mean is None or pixels.std is None else [_per_channel(pixels.mean, pixels.std)]
    lines = [
        f"{exported.path}: {size:,} bytes, format {exported.format}, weights {weights}, opset {opset}",
        f"Input: {exported.input} image {list(pixels.shape)}, {grid}; {images} per run",
        *statistics,
        *_pictures(pixels),
        f"Classes: {some_of(names)}",
    ]
    for name, layers in metadata.get("passes", {}).items():
        if layers:
            lines.append(f"Rewritten by {name}: {some_of([str(layer) for layer in layers])}")
    return lines
