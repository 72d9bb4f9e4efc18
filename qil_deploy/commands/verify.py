"""`verify`: check an exported model, and measure its accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qil_deploy.errors import ConfigError, DataError
from qil_deploy.interrupts import noticing_interrupts

from .kernel_option import KernelOption, named_library
from .show_reports import write_and_show
from .verify_targets import TargetRequest, verify_on_targets

if TYPE_CHECKING:
    from qil_deploy.datasets import ImageBatches
    from qil_deploy.runtime_tests.backends import CodeReader
    from qil_deploy.runtime_tests.exported_model import ExportedModel
    from qil_deploy.runtime_tests.kernel_library import KernelLibrary

_LISTED = 10  # classes that a message names


def verify_command(  # noqa: PLR0913, PLR0917 - every argument is an option of its own
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The exported model.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Its checkpoint: also compare the PyTorch models (needs torch).")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Data set name or image folder. [default: what the model was trained on]"),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the report here.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per run. [default: 250, fewer where they are large]")
    ] = None,
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
    between: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A B",
            help="Compare these two node by node: reference, frozen, unfrozen, golden, or a level of ONNX Runtime "
            "(disabled, basic, extended, all; kernels: all with --kernels). [default: the reference and whatever "
            "differs from it]",
        ),
    ] = None,
    first_difference: Annotated[
        bool, typer.Option("--first-difference", help="Compare node by node even if no logit differs.")
    ] = False,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Compare every code of a few images on other instruction sets (see: target list) or devices "
            "(ssh:USER@HOST:PORT, adb:SERIAL) instead, and the logits of the first --limit images; may be repeated.",
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds without progress after which a target is stopped.")] = 300.0,
    repeats: Annotated[
        int, typer.Option(help="Timed runs on each target that is not an emulator; 0 for none.", metavar="N")
    ] = 20,
    kernels: KernelOption = None,
    device_python: Annotated[
        str, typer.Option(metavar="PYTHON", help="The interpreter on the devices, with numpy and onnxruntime.")
    ] = "python3",
) -> None:
    """Compare every logit of a test set with the integer reference, and report the accuracy.

    If a backend differs that must be equal, name the first node that differs and exit with 1.
    For a float32 baseline, only measure the accuracy.
    """
    from qil_deploy.files import ensure_writable
    from qil_deploy.runtime_tests import verify
    from qil_deploy.runtime_tests.exported_model import read_exported_model
    from qil_deploy.runtime_tests.tables import verify_table
    from qil_deploy.runtime_tests.verify import batch_size_for
    from qil_deploy.terminal import Console, Progress

    _check_options(limit, trusted_model, checkpoint)
    library = named_library(kernels)
    if target:
        from qil_deploy.runtime_tests.targets import RunOptions

        request = TargetRequest(
            model=model,
            targets=target,
            device_python=device_python,
            golden=golden,
            limit=limit,
            options=RunOptions(
                threads=threads,
                repeats=repeats,
                timeout=timeout,
                kernels=None if library is None else library.path,
            ),
            json=json,
        )
        beside = any(option is not None for option in (checkpoint, between))
        _verify_targets(request, data, others=beside or first_difference)
        return
    pair = None if between is None else (_backend(between[0]), _backend(between[1]))
    codes = {} if checkpoint is None else _checkpoint_codes(checkpoint, trusted_model)
    if golden is not None:
        if any(option is not None for option in (data, json, limit, batch_size)) or (checkpoint and not between):
            raise ConfigError(
                "--golden brings its own images and writes no report: it takes no --data, --limit, --batch-size or "
                "--json, and a --checkpoint only with --between."
            )
        _verify_golden(model, golden, threads, pair, codes, library)
        return
    if between is not None and "golden" in between:
        raise ConfigError("--between names golden vectors; give their file with --golden.")
    if json is not None:
        ensure_writable(json)
    exported = read_exported_model(model)
    size = batch_size_for(exported.preprocessing.shape) if batch_size is None else batch_size
    images = open_test_images(exported, data, size)
    if limit is not None:
        images = images.first(limit)
    others = {}
    if checkpoint is not None:
        from .predictors import checkpoint_predictors

        others = checkpoint_predictors(checkpoint, trusted_model)
    with noticing_interrupts() as interrupted, Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("verifying", total=len(images))
        report = verify(
            model,
            images,
            others=others,
            codes=codes,
            threads=threads,
            between=pair,
            first_difference=first_difference,
            kernels=library,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            stop=interrupted,
        )
    write_and_show(report, json, [verify_table(report)])
    if report.exact is False:
        raise typer.Exit(1)
    if report.images < len(images):
        raise typer.Exit(130)


def _check_options(limit: int | None, trusted_model: str | None, checkpoint: Path | None) -> None:
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit is {limit}; it must be at least 1.")
    if trusted_model is not None and checkpoint is None:
        raise ConfigError("--model names the function that builds the network of --checkpoint; give both.")


def _check_codes(model: Path) -> None:
    """Raise ConfigError for a file without codes."""
    from qil_deploy.runtime_tests.exported_model import FLOAT, read_exported_model

    if read_exported_model(model).format == FLOAT:
        raise ConfigError(
            f"{model} is a float32 baseline, which has no codes to compare; verify it without --target and --golden, "
            "which measures its accuracy."
        )


def _verify_targets(request: TargetRequest, data: str | None, *, others: bool) -> None:
    """Run the model on targets, with golden vectors or the test set; `others`: whether more was to be compared."""
    from qil_deploy.runtime_tests.exported_model import read_exported_model
    from qil_deploy.runtime_tests.golden import read_golden

    if others:
        raise ConfigError("--target takes no --checkpoint, --between or --first-difference; leave them out.")
    _check_codes(request.model)
    exported = read_exported_model(request.model)
    if request.golden is not None:
        if data is not None or request.limit is not None:
            raise ConfigError("--golden brings its own images; with --target it takes neither --data nor --limit.")
        read_golden(request.golden, exported)  # refuses what every target would have to
        verify_on_targets(request, None, str(request.golden))
        return
    verify_on_targets(request, open_test_images(exported, data, 1), data or exported.data or "")


def _backend(name: str) -> str:
    """Return a backend's name in reports from its name on the command line."""
    from qil_deploy.runtime_tests.backends import FROZEN, GOLDEN, REFERENCE, UNFROZEN, onnx_backend_name
    from qil_deploy.runtime_tests.sessions import OPTIMIZATION_LEVELS

    names = {"reference": REFERENCE, "frozen": FROZEN, "unfrozen": UNFROZEN, "golden": GOLDEN}
    names |= {level: onnx_backend_name(level) for level in OPTIMIZATION_LEVELS}
    names |= {"kernels": onnx_backend_name("all", kernels=True)}
    if name not in names:
        raise ConfigError(f"--between names {name!r}; choose from {', '.join(names)}.")
    return names[name]


def _checkpoint_codes(checkpoint: Path, trusted_model: str | None) -> dict[str, CodeReader]:
    from qil_deploy.runtime_tests.backends import FROZEN

    from .predictors import frozen_codes

    return {FROZEN: frozen_codes(checkpoint, trusted_model)}


def _verify_golden(
    model: Path,
    golden: Path,
    threads: int,
    pair: tuple[str, str] | None,
    codes: dict[str, CodeReader],
    library: KernelLibrary | None,
) -> None:
    """Compare golden vectors with one backend, by default ONNX Runtime at every level that has to be exact."""
    from qil_deploy.runtime_tests.backends import GOLDEN, exact_levels, onnx_backend_name
    from qil_deploy.runtime_tests.differences import describe_difference
    from qil_deploy.runtime_tests.exported_model import read_exported_model
    from qil_deploy.runtime_tests.golden import check_golden
    from qil_deploy.terminal import Console

    _check_codes(model)
    if pair is not None and GOLDEN not in pair:
        raise ConfigError("--golden is one of the two backends to compare; name it golden in --between.")
    if pair is None:
        levels = exact_levels(read_exported_model(model).format)
        with_kernels = (False,) if library is None else (False, True)
        backends = [onnx_backend_name(level, kernels=kernels) for kernels in with_kernels for level in levels]
    else:
        backends = [pair[1] if pair[0] == GOLDEN else pair[0]]
    console = Console()
    equal = True
    for backend in backends:
        comparison = check_golden(model, golden, against=backend, threads=threads, others=codes, kernels=library)
        equal = equal and comparison.difference is None
        console.print(describe_difference(comparison))
    if not equal:
        raise typer.Exit(1)


def open_test_images(model: ExportedModel, data: str | None, batch_size: int) -> ImageBatches:
    """Open the test split of `data`, by default of the data set the metadata names, in the model's shape."""
    from qil_deploy.datasets import load_batches

    name = model.data if data is None else data
    if name is None:
        raise DataError(f"{model.path} does not say which data set it was trained on; name one with --data.")
    images = load_batches(name, "test", preprocessing=model.preprocessing, batch_size=batch_size)
    if images.class_names != model.class_names:
        raise DataError(
            f"data set {name!r} has the classes {_first_of(images.class_names)}, but {model.path} tells "
            f"apart {_first_of(model.class_names)}; verify with the data set the model was trained on."
        )
    return images


def _first_of(names: Sequence[str]) -> str:
    """List some names; of many, the first of them and their number."""
    listed = ", ".join(names[:_LISTED])
    return listed if len(names) <= _LISTED else f"{listed}, ... ({len(names)})"
