"""`inspect`: what an exported model is made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from qil_deploy.errors import ModelFileError


def inspect_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The exported model.")],
) -> None:
    """Print format, input, classes, layers and certificate of an exported model."""
    from rich.console import Console

    from qil_deploy.exported_names import METADATA_KEY
    from qil_deploy.runtime_tests.exported_model import read_exported_model

    from .tables import certificate_table, layer_table

    exported = read_exported_model(model)
    metadata = json.loads(exported.graph.metadata[METADATA_KEY])
    for entry in ("layers", "certificate"):
        if exported.format != "float" and entry not in metadata:
            raise ModelFileError(f"the metadata of {model} has no entry {entry!r}; export the model again.")
    console = Console(markup=False)
    console.print(
        f"{model}: {model.stat().st_size:,} bytes, format {exported.format}, "
        f"weights {metadata.get('weights', 'float32')}, opset {exported.graph.opsets['']}"
    )
    pixels = exported.preprocessing
    console.print(
        f"Input: {exported.input} image {list(pixels.shape)}, scale {pixels.scale:.6g}, zero point {pixels.zero_point}"
    )
    console.print(f"Classes: {', '.join(exported.class_names)}")
    if exported.format != "float":
        console.print(layer_table(exported.graph, metadata["layers"]))
        console.print(certificate_table(metadata["certificate"]))
