"""`export`: write a checkpoint as ONNX."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from qil_deploy.errors import ConfigError


class Format(StrEnum):
    """Integer operators, or float operators between quantize and dequantize."""

    qlinear = "qlinear"
    qdq = "qdq"


class Weights(StrEnum):
    """How weight codes are stored."""

    packed = "packed"
    int8 = "int8"


class Input(StrEnum):
    """What the model takes: raw images or normalised ones."""

    uint8 = "uint8"
    float = "float"


def export_command(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint of this project.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MODEL.onnx", help="The file to write.")],
    format: Annotated[Format, typer.Option(help="Operators of the graph.")] = Format.qlinear,  # noqa: A002 - option name
    weights: Annotated[Weights, typer.Option(help="Weights in 4 or 2 bits, or in int8.")] = Weights.packed,
    input: Annotated[Input, typer.Option(help="Raw or normalised images.")] = Input.uint8,  # noqa: A002 - option name
    opset: Annotated[int | None, typer.Option(help="Operator set. [default: the oldest that works]")] = None,
) -> None:
    """Fold, lower, certify and write a checkpoint as ONNX.

    A quantized checkpoint is frozen on the way; a float one is written as the float32 baseline.
    """
    from rich.console import Console
    from torch import fx

    from qil_deploy.checkpoint import load_model
    from qil_deploy.export import ExportOptions, export_float_onnx, export_onnx
    from qil_deploy.files import ensure_writable
    from qil_deploy.training.models import build_model

    from .tables import certificate_table

    ensure_writable(output)
    options = ExportOptions(format=format.value, weights=weights.value, input=input.value, opset=opset)
    info, model = load_model(checkpoint, build_model)
    console = Console(markup=False)
    if isinstance(model, fx.GraphModule):
        result = export_onnx(
            model,
            output,
            preprocessing=info.preprocessing,
            class_names=info.class_names,
            data=info.data,
            options=options,
        )
        if info.kind == "quantized":
            console.print(
                "The checkpoint was not frozen; it was frozen on the way. `verify --checkpoint` shows what changed."
            )
        console.print(certificate_table([asdict(line) for line in result.certificate]))
    else:
        if options != ExportOptions():
            raise ConfigError(
                f"checkpoint {checkpoint} holds a float network, which is written as it is; "
                "--format, --weights, --input and --opset are for quantized ones."
            )
        result = export_float_onnx(
            model, output, preprocessing=info.preprocessing, class_names=info.class_names, data=info.data
        )
    console.print(f"Wrote {result.path}, {result.size:,} bytes.")
