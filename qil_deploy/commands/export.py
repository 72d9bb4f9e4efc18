"""`export`: write a checkpoint as ONNX."""

from __future__ import annotations

import math
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qil_deploy.errors import ConfigError, DataError
from qil_deploy.slow_imports import loading
from qil_deploy.untrusted_text import excerpt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from qil_deploy.checkpoint import CheckpointInfo
    from qil_deploy.integers import FreezingReport
    from qil_deploy.terminal import Console


# All 10,000 test images of Fashion-MNIST, 53 colour images of 224x224: an export should not take minutes.
FREEZING_PIXELS = 8_000_000


class Format(StrEnum):
    """Integer operators, or float operators between quantize and dequantize."""

    qlinear = "qlinear"
    qdq = "qdq"


class Weights(StrEnum):
    """Storage of weight codes."""

    packed = "packed"
    int8 = "int8"


class Input(StrEnum):
    """Input of the model: raw images or normalised ones."""

    uint8 = "uint8"
    float = "float"


class Pass(StrEnum):
    """Rewrites that make a file faster and leave all of its integers unchanged."""

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
    without: Annotated[list[Pass] | None, typer.Option(help="Skip this rewrite (repeatable).")] = None,
    kernels: Annotated[
        bool,
        typer.Option(
            "--kernels",
            help="Write layers of at most 4 bits so that the package qil-deploy-kernels speeds them up; without "
            "it the file runs as any other.",
        ),
    ] = False,
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
    """Export a checkpoint as a certified integer ONNX file.

    A quantized checkpoint is frozen on the way; a float one is written as the float32 baseline.
    """
    with loading("PyTorch and ONNX"):
        from qil_deploy.checkpoint import load_model
        from qil_deploy.export import ExportOptions, export_float_onnx, export_onnx
        from qil_deploy.files import ensure_apart, ensure_writable
        from qil_deploy.integers import drop_float_weights, freeze
        from qil_deploy.network import keeps_float
        from qil_deploy.runtime_tests.golden import golden_path
        from qil_deploy.terminal import Console
        from qil_deploy.training.models import model_builder

        from .tables import certificate_table

    for name, value in (("golden", golden), ("limit", limit)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name} is {value}; it must be at least 1.")
    outputs = {"the exported model": output} | ({} if golden is None else {"its golden vectors": golden_path(output)})
    ensure_apart(outputs, {"the checkpoint that is read": checkpoint})
    for path in outputs.values():
        ensure_writable(path)
    left_out = {name.value.replace("-", "_"): False for name in without or ()}
    options = ExportOptions(
        format=format.value,
        weights=weights.value,
        input=input.value,
        opset=opset,
        batch=batch,
        kernels=kernels,
        **left_out,
    )
    info, model = load_model(checkpoint, model_builder(trusted_model))
    console = Console()
    if info.kind == "float":
        if options != ExportOptions() or golden is not None:
            raise ConfigError(
                f"checkpoint {checkpoint} holds a float network, which is written as it is; "
                "--format, --weights, --input, --opset, --batch, --without, --kernels and --golden are for quantized "
                "ones."
            )
        written = export_float_onnx(
            model, output, preprocessing=info.preprocessing, class_names=info.class_names, data=info.data
        )
        console.print(f"Wrote {written.path}, {written.size:,} bytes.")
        return
    if golden is not None:
        _require_integers(checkpoint, model)
    images = None if golden is None else _golden_images(golden, data, info)
    report = _recorded_freezing(info)
    if info.kind == "quantized" and not keeps_float(model):
        prepared, model = model, freeze(model, share_parameters=True)
        report = _freezing_report(prepared, model, data, info, limit, console) if freezing_report else None
        console.print(
            report.sentence() if report is not None else "Freezing was not measured; `verify --checkpoint` can."
        )
        del prepared
    drop_float_weights(model)  # nobody trains this model, and they are most of what it holds
    result = export_onnx(
        model,
        output,
        preprocessing=info.preprocessing,
        class_names=info.class_names,
        data=info.data,
        options=options,
        freezing=report,
    )
    console.print(certificate_table([asdict(line) for line in result.certificate]))
    console.print(f"Wrote {result.path}, {result.size:,} bytes.")
    if images is not None:
        console.print(_write_golden(result.path, *images))


def _require_integers(checkpoint: Path, model: nn.Module) -> None:
    """Refuse a model whose float parts make golden vectors impossible, before anything is written."""
    from qil_deploy.network import FloatIsland, keeps_float

    kept = [name for name, module in model.named_modules() if isinstance(module, FloatIsland)]
    if keeps_float(model) or kept:
        found = "has float parts" if not kept else f"keeps {excerpt(', '.join(kept))} in float"
        raise ConfigError(
            f"checkpoint {checkpoint} {found}, whose values depend on the kernel; --golden is for networks that are "
            "integers from the image to the logits: export it without."
        )


def _freezing_report(
    prepared: nn.Module,
    frozen: nn.Module,
    data: str | None,
    info: CheckpointInfo,
    limit: int | None,
    console: Console,
) -> FreezingReport | None:
    """Compare both models on the first test images; where there are none, say so and return None.

    Raises:
        DataError: the data set that was asked for cannot be read.
    """
    from qil_deploy.datasets import load_batches
    from qil_deploy.integers import compare_freezing

    shape, name = info.preprocessing.shape, data or info.data
    count = limit or max(1, FREEZING_PIXELS // math.prod(shape))
    try:
        images = load_batches(name, "test", preprocessing=info.preprocessing, batch_size=count).load(count)
    except DataError as error:
        if data is not None:
            raise
        console.print(f"What freezing costs could not be measured: {error}")
        return None
    try:
        with console.status(f"Measuring on {len(images):,} images what freezing costs ..."):
            return compare_freezing(prepared, frozen, name, images, info.preprocessing)
    except DataError as error:
        console.print(f"What freezing costs could not be measured: {error}")
        return None


def _recorded_freezing(info: CheckpointInfo) -> FreezingReport | None:
    """Return a frozen checkpoint's record of its freezing; earlier ones lack the number of changed predictions."""
    from qil_deploy.integers import FreezingReport

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


def _golden_images(count: int, data: str | None, info: CheckpointInfo) -> tuple[NDArray[np.uint8], str]:
    """Return the first test images, or noise if the training data set is missing, with a description.

    Raises:
        DataError: the data set that was asked for cannot be read.
    """
    import numpy as np

    from qil_deploy.datasets import load_batches

    shape, name = info.preprocessing.shape, data or info.data
    try:
        images = load_batches(name, "test", preprocessing=info.preprocessing, batch_size=count).load(count).images
    except DataError:
        if data is not None:
            raise
        noise = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
        return noise, f"noise, for data set {name!r} is not here"
    return images, f"{name}, test images"


def _write_golden(model: Path, images: NDArray[np.uint8], source: str) -> str:
    """Write golden vectors beside a model, and print a line about them."""
    from qil_deploy.runtime_tests.golden import golden_path, write_golden

    path = golden_path(model)
    write_golden(model, images, source, path)
    return f"Wrote {path}, {path.stat().st_size:,} bytes: {len(images)} images ({source})."
