"""`export`: write a checkpoint as ONNX."""

from __future__ import annotations

import math
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qil_deploy.errors import ConfigError, DataError
from qil_deploy.terminal.loading import loading

if TYPE_CHECKING:
    from torch import nn

    from qil_deploy.checkpoint import CheckpointInfo
    from qil_deploy.freezing_report import FreezingReport
    from qil_deploy.preprocessing import Preprocessing
    from qil_deploy.terminal.console import Console


# All 10,000 test images of Fashion-MNIST, 53 colour images of 224x224: an export should not take minutes.
FREEZING_PIXELS = 8_000_000


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


class Pass(StrEnum):
    """Rewrites that make a file faster and change none of its integers."""

    space_to_depth = "space-to-depth"
    channels_last = "channels-last"
    matmul_nbits = "matmul-nbits"
    simplify = "simplify"


def export_command(  # noqa: PLR0913, PLR0917 - every argument is an option of its own
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint of this project.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="MODEL.onnx", help="The file to write.")],
    format: Annotated[Format, typer.Option(help="Operators of the graph.")] = Format.qlinear,  # noqa: A002 - option name
    weights: Annotated[Weights, typer.Option(help="Weights in 4 or 2 bits, or in int8.")] = Weights.packed,
    input: Annotated[Input, typer.Option(help="Raw or normalised images.")] = Input.uint8,  # noqa: A002 - option name
    opset: Annotated[int | None, typer.Option(help="Operator set. [default: the oldest that works]")] = None,
    batch: Annotated[int | None, typer.Option(metavar="N", help="Images per run. [default: any number]")] = None,
    without: Annotated[list[Pass] | None, typer.Option(help="Leave a rewrite out (repeatable).")] = None,
    golden: Annotated[
        int | None,
        typer.Option(metavar="N", help="Write golden vectors of N images to MODEL.golden.npz, too."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Data set name or image folder, for golden vectors and for what freezing costs. "
            "[default: what the model was trained on]"
        ),
    ] = None,
    freezing_report: Annotated[bool, typer.Option(help="Measure what freezing an unfrozen checkpoint costs.")] = True,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", help="... on the first N test images. [default: as many as have 8 million pixels]"),
    ] = None,
    trusted_model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODULE:FUNCTION", help="Your function that builds the checkpoint's network."),
    ] = None,
) -> None:
    """Fold, lower, certify and write a checkpoint as ONNX.

    A quantized checkpoint is frozen on the way; a float one is written as the float32 baseline.
    """
    with loading("PyTorch and ONNX"):
        from torch import fx

        from qil_deploy.checkpoint import load_model
        from qil_deploy.export import ExportOptions, export_float_onnx, export_onnx
        from qil_deploy.files import ensure_writable
        from qil_deploy.freezing import freeze, keeps_float
        from qil_deploy.terminal.console import Console
        from qil_deploy.training.models import model_builder

        from .tables import certificate_table

    for name, value in (("golden", golden), ("limit", limit)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name} is {value}; it must be at least 1.")
    ensure_writable(output)
    left_out = {name.value.replace("-", "_"): False for name in without or ()}
    options = ExportOptions(
        format=format.value, weights=weights.value, input=input.value, opset=opset, batch=batch, **left_out
    )
    info, model = load_model(checkpoint, model_builder(trusted_model))
    console = Console()
    if isinstance(model, fx.GraphModule):
        if golden is not None and keeps_float(model):
            raise ConfigError(
                f"checkpoint {checkpoint} has float parts, whose values depend on the kernel; --golden is for integer "
                "placement."
            )
        report = None
        if info.kind == "quantized" and not keeps_float(model):
            prepared, model = model, freeze(model)
            if freezing_report:
                report = _freezing_report(prepared, model, data or info.data, info.preprocessing, limit, console)
            console.print(
                report.sentence() if report is not None else "Freezing was not measured; `verify --checkpoint` can."
            )
        result = export_onnx(
            model,
            output,
            preprocessing=info.preprocessing,
            class_names=info.class_names,
            data=info.data,
            options=options,
            freezing=report or _recorded_freezing(info),
        )
        console.print(certificate_table([asdict(line) for line in result.certificate]))
    else:
        if options != ExportOptions() or golden is not None:
            raise ConfigError(
                f"checkpoint {checkpoint} holds a float network, which is written as it is; "
                "--format, --weights, --input, --opset, --batch, --without and --golden are for quantized ones."
            )
        result = export_float_onnx(
            model, output, preprocessing=info.preprocessing, class_names=info.class_names, data=info.data
        )
    console.print(f"Wrote {result.path}, {result.size:,} bytes.")
    if golden is not None:
        console.print(_write_golden(result.path, golden, data or info.data))


def _freezing_report(
    prepared: nn.Module,
    frozen: nn.Module,
    data: str,
    preprocessing: Preprocessing,
    limit: int | None,
    console: Console,
) -> FreezingReport | None:
    """Compare both models on the first test images of `data`; say so and return None where there are none."""
    from qil_deploy.datasets import load_batches
    from qil_deploy.freezing_report import compare_freezing

    count = limit or max(1, FREEZING_PIXELS // math.prod(preprocessing.shape))
    try:
        images = load_batches(data, "test", shape=preprocessing.shape, batch_size=count).load(count)
    except DataError as error:
        console.print(f"What freezing costs could not be measured: {error}")
        return None
    with console.status(f"Measuring on {len(images):,} images what freezing costs ..."):
        return compare_freezing(prepared, frozen, data, images, preprocessing)


def _recorded_freezing(info: CheckpointInfo) -> FreezingReport | None:
    """Return what a frozen checkpoint says about its freezing; earlier ones do not say how many predictions changed."""
    from qil_deploy.freezing_report import FreezingReport

    metrics = info.metrics
    if not {"accuracy", "accuracy_before_freezing", "changed_predictions", "test_images"} <= metrics.keys():
        return None
    return FreezingReport(
        data=info.data,
        images=int(metrics["test_images"]),
        accuracy_before=metrics["accuracy_before_freezing"],
        accuracy_after=metrics["accuracy"],
        changed_predictions=int(metrics["changed_predictions"]),
    )


def _write_golden(model: Path, count: int, data: str) -> str:
    """Write golden vectors of the first images of a data set, or of noise where it is missing; say which."""
    import numpy as np

    from qil_deploy.datasets import load_batches
    from qil_deploy.runtime_tests.exported_model import read_exported_model
    from qil_deploy.runtime_tests.golden import golden_path, write_golden

    shape = read_exported_model(model).preprocessing.shape
    try:
        images = load_batches(data, "test", shape=shape, batch_size=count).load(count).images
        source = f"{data}, test images"
    except DataError:
        images = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
        source = f"noise, for data set {data!r} is not here"
    path = golden_path(model)
    write_golden(model, images, source, path)
    return f"Wrote {path}, {path.stat().st_size:,} bytes: {len(images)} images ({source})."
