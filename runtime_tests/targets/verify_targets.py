"""Run one model on many targets: every code of a few images, and optionally the logits of more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from qil_deploy.errors import TargetError
from qil_deploy.runtime_tests.backends import exact_levels
from qil_deploy.runtime_tests.exported_model import read_exported_model
from qil_deploy.runtime_tests.reports import ModelFile

from .catalogue import Target, target_state
from .kernels import why_no_kernels
from .options import RunOptions
from .report import TargetResult, TargetsReport
from .run import run_on_target

DEFAULT_REPEATS = 20


def verify_targets(
    model: Path,
    targets: Sequence[Target],
    golden: Path,
    *,
    logits: Path | None = None,
    options: RunOptions | None = None,
    skip: bool = False,
    progress: Callable[[str, str], None] | None = None,
) -> TargetsReport:
    """Compare every code of golden vectors on some targets, and the logits of more images.

    Args:
        model: the ONNX file.
        targets: where to run it.
        golden: its golden vectors, compared at every optimization level that has to be exact.
        logits: golden logits of more images (`write_golden_logits`), compared at the default level.
        options: threads, batch, timeout, kernels, and how many runs are timed where time is real; levels are chosen
            here.
        skip: whether a target that cannot run is skipped with its reason, instead of refused before work starts.
        progress: called with a target's name and its progress.

    Raises:
        ModelFileError: the model cannot be read.
        TargetError: a target cannot run, without `skip`. One that fails or stops answering is an entry of the report.
    """
    options = RunOptions(repeats=DEFAULT_REPEATS) if options is None else options
    levels = exact_levels(read_exported_model(model).format)
    if not skip:
        require_runnable(targets, options)
    options = replace(options, levels=levels)
    results = []
    for target in targets:
        reason = _why_not(target, options)
        if reason is not None:
            results.append(TargetResult(target=target.name, skipped=reason, failed=None, codes=None, logits=None))
            continue
        tell = None if progress is None else partial(progress, target.name)
        results.append(_verify_target(model, target, golden, logits, options, tell))
    reports = [report for result in results for report in result.reports]
    failed = any(result.failed is not None for result in results)
    return TargetsReport(
        schema=TargetsReport.SCHEMA,
        model=ModelFile.of(model),
        exact=None if not reports and not failed else not failed and all(report.differing == 0 for report in reports),
        targets=tuple(results),
    )


def require_runnable(targets: Sequence[Target], options: RunOptions) -> None:
    """Raise unless all targets can run.

    Raises:
        TargetError: one cannot, or cannot load the library of kernels.
    """
    for target in targets:
        reason = _why_not(target, options)
        if reason is not None:
            raise TargetError(f"target {target.name} cannot run: {reason}")


def _why_not(target: Target, options: RunOptions) -> str | None:
    """Return None if a target can run with these options, else the reason, as a sentence."""
    unloadable = None if options.kernels is None else why_no_kernels(target, options.kernels)
    return unloadable or target_state(target)


def _verify_target(
    model: Path,
    target: Target,
    golden: Path,
    logits: Path | None,
    options: RunOptions,
    progress: Callable[[str], None] | None,
) -> TargetResult:
    """Run a target; if it fails, keep the earlier results, and the reason."""
    codes = more = failed = None
    try:
        repeats = options.repeats if target.emulator is None else 0
        codes = run_on_target(target, model, golden, replace(options, repeats=repeats), progress)
        if logits is not None:
            more = run_on_target(target, model, logits, replace(options, levels=("all",), repeats=0), progress)
    except TargetError as error:
        failed = str(error)
    return TargetResult(target=target.name, skipped=None, failed=failed, codes=codes, logits=more)
