"""`verify --target`: the same file on other instruction sets."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from qil_deploy.errors import ConfigError

from .show_reports import write_and_show

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qil_deploy.datasets import ImageBatches
    from qil_deploy.runtime_tests.targets import RunOptions, Target, TargetsReport

GOLDEN_IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class TargetRequest:
    """Options of the command line that concern targets.

    Attributes:
        model: the ONNX file.
        targets: names; "all" skips those that cannot run here.
        device_python: the interpreter on the devices among them.
        golden: golden vectors; None for the codes of the first images of the test set.
        limit: how many images' logits are compared besides; None for none.
        options: threads of ONNX Runtime, how many runs are timed, how long a target may be silent, and kernels.
        json: where the report goes.
    """

    model: Path
    targets: Sequence[str]
    device_python: str
    golden: Path | None
    limit: int | None
    options: RunOptions
    json: Path | None


def verify_on_targets(request: TargetRequest, images: ImageBatches | None, images_from: str) -> None:
    """Run a model on targets, print the table, write the report.

    Exits with 1 if something differs, with 2 if a target failed.

    Args:
        request: what was asked for.
        images: the test set, where the request needs one.
        images_from: its name.
    """
    from qil_deploy.files import ensure_writable
    from qil_deploy.runtime_tests.targets import find_target, require_runnable, target_names
    from qil_deploy.runtime_tests.targets.table import targets_remarks, targets_table

    # By order of mention, each once.
    names = dict.fromkeys(name for text in request.targets for name in target_names(text))
    targets = [find_target(name, request.device_python) for name in names]
    options = request.options
    if not options.timeout > 0:
        raise ConfigError(f"--timeout is {options.timeout:g}; it must be more than 0 seconds.")
    if options.threads < 1 or options.repeats < 0:
        raise ConfigError(
            f"--threads is {options.threads} and --repeats {options.repeats}; they must be at least 1 and at least 0."
        )
    if request.json is not None:
        ensure_writable(request.json)
    if "all" not in request.targets:
        require_runnable(targets, options)
    report = _run(request, targets, images, images_from)
    write_and_show(report, request.json, [targets_table(report)], targets_remarks(report))
    if any(result.failed is not None for result in report.targets):
        raise typer.Exit(2)
    if report.exact is False:
        raise typer.Exit(1)


def _run(
    request: TargetRequest, targets: Sequence[Target], images: ImageBatches | None, images_from: str
) -> TargetsReport:
    """Write golden vectors if requested, and run the targets."""
    from qil_deploy.runtime_tests.golden import write_golden
    from qil_deploy.runtime_tests.targets import verify_targets, write_golden_logits
    from qil_deploy.terminal import Console

    with tempfile.TemporaryDirectory() as folder, Console(stderr=True).status("") as status:
        golden, logits = request.golden, None
        if images is not None and golden is None:
            status.update("the integer reference: every code")
            golden = Path(folder) / "codes.npz"
            write_golden(request.model, first_images(images, GOLDEN_IMAGES), images_from, golden)
        if images is not None and request.limit is not None:
            status.update(f"the integer reference: logits of {request.limit} images")
            logits = Path(folder) / "logits.npz"
            write_golden_logits(request.model, first_images(images, request.limit), images_from, logits)
        if golden is None:
            raise ConfigError("there is nothing to compare with; give golden vectors or a data set.")
        return verify_targets(
            request.model,
            targets,
            golden,
            logits=logits,
            options=request.options,
            skip="all" in request.targets,
            progress=lambda target, what: status.update(f"{target}: {what}"),
        )


def first_images(images: ImageBatches, count: int) -> NDArray[np.uint8]:
    """Return the first images, or all where there are not so many."""
    return images.read(0, min(count, len(images))).images
