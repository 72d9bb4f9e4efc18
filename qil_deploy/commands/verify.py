"""`verify`: is an exported model right, and how accurate is it?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qil_deploy.errors import ConfigError, DataError

if TYPE_CHECKING:
    from qil_deploy.datasets import ImageSet
    from qil_deploy.runtime_tests.exported_model import ExportedModel


def verify_command(  # noqa: PLR0913, PLR0917 - every argument is an option of its own
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The exported model.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Its checkpoint: compares the PyTorch models too (needs torch).")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Data set name or image folder. [default: what the model was trained on]"),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images per run.")] = 250,
    limit: Annotated[int | None, typer.Option(help="Use the first N images only.", metavar="N")] = None,
    threads: Annotated[int, typer.Option(help="Threads of ONNX Runtime.")] = 1,
    golden: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Compare with golden vectors instead: every code of a few images."),
    ] = None,
    trusted_model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODULE:FUNCTION", help="Your function that builds the checkpoint's network."),
    ] = None,
) -> None:
    """Compare every logit of a test set with the integer reference, and report the accuracy.

    Exits with 1 if a backend differs that has to be equal.
    """
    from rich.console import Console
    from rich.progress import Progress

    from qil_deploy.files import ensure_writable
    from qil_deploy.runtime_tests import verify, write_report
    from qil_deploy.runtime_tests.exported_model import read_exported_model
    from qil_deploy.runtime_tests.tables import verify_table

    if limit is not None and limit < 1:
        raise ConfigError(f"--limit is {limit}; it must be at least 1.")
    if trusted_model is not None and checkpoint is None:
        raise ConfigError("--model says who builds the network of --checkpoint; give both.")
    if golden is not None:
        if checkpoint is not None or data is not None or json is not None:
            raise ConfigError("--golden takes no data set, checkpoint or report; give it alone.")
        _verify_golden(model, golden, threads)
        return
    if json is not None:
        ensure_writable(json)
    images = _test_images(read_exported_model(model), data)
    if limit is not None:
        images = images.first(limit)
    others = {}
    if checkpoint is not None:
        from .predictors import checkpoint_predictors

        others = checkpoint_predictors(checkpoint, trusted_model)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("verifying", total=len(images))
        report = verify(
            model,
            images.images,
            images.labels,
            others=others,
            batch_size=batch_size,
            threads=threads,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if json is not None:
        write_report(json, report)
    Console(markup=False).print(verify_table(report))
    if report.exact is False:
        raise typer.Exit(1)


def _verify_golden(model: Path, golden: Path, threads: int) -> None:
    """Compare ONNX Runtime with golden vectors, at every optimization level that has to be exact."""
    from rich.console import Console

    from qil_deploy.runtime_tests.exported_model import read_exported_model
    from qil_deploy.runtime_tests.golden import check_golden
    from qil_deploy.runtime_tests.verify import exact_levels

    console = Console(markup=False)
    equal = True
    for level in exact_levels(read_exported_model(model).format):
        difference = check_golden(model, golden, level=level, threads=threads)
        if difference is None:
            console.print(f"ONNX Runtime ({level}): every code and logit is as in {golden}.")
        else:
            equal = False
            console.print(
                f"ONNX Runtime ({level}): {difference.tensor!r} is the first tensor that differs from {golden}: "
                f"{difference.differing:,} of {difference.elements:,} elements, first at {list(difference.index)}, by "
                f"{difference.largest_step:g} at most."
            )
    if not equal:
        raise typer.Exit(1)


def _test_images(model: ExportedModel, data: str | None) -> ImageSet:
    """Load the test split of `data`, by default of the data set the metadata names, in the model's shape."""
    from qil_deploy.datasets import load_images

    name = model.data if data is None else data
    if name is None:
        raise DataError(f"{model.path} does not say which data set it was trained on; name one with --data.")
    images = load_images(name, "test", shape=model.preprocessing.shape)
    if images.class_names != model.class_names:
        raise DataError(
            f"data set {name!r} has the classes {', '.join(images.class_names)}, but {model.path} tells "
            f"apart {', '.join(model.class_names)}; verify with the data set the model was trained on."
        )
    return images
