"""Validate a target's report.

The target counts what differs. Its counts are taken as they are, within their bounds; but every tensor at every level
has to be there with the digest of what was computed, and where it claims no difference, shape, type and digest have to
be those of the golden tensor, and nowhere else. `check_consistency` checks what can be checked without golden vectors,
for any report.
"""

from __future__ import annotations

import math
import re

import numpy as np

from qil_deploy.errors import DataError
from qil_deploy.onnx_io import KERNEL_OPERATORS
from qil_deploy.runtime_tests.exported_model import ExportedModel
from qil_deploy.runtime_tests.golden_chunks import GoldenChunks
from qil_deploy.runtime_tests.reports import ModelFile
from qil_deploy.runtime_tests.sessions import OPTIMIZATION_LEVELS
from qil_deploy.untrusted_text import excerpt

from .checks import check_environment, check_word, expect, within
from .options import RunOptions
from .report import DeviceReport, LevelResult, TensorResult

_MAX_MS = 1e9
_MOST = 2**53
_MOST_AXES = 32
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


def largest_report(golden: GoldenChunks, options: RunOptions) -> int:
    """Return the maximum size in bytes of a run's report."""
    each = 16 * len(golden.images) + 4096 * (len(golden.tensors) + 1)
    return 2**16 + each * len(options.levels)


def check_report(
    report: DeviceReport, model: ExportedModel, golden: GoldenChunks, options: RunOptions, *, browser: bool
) -> None:
    """Check that a report is possible for a run, and that tensors reported as equal are.

    Args:
        report: what a target sent.
        model: what was to be run.
        golden: on which images, and what had to come out of it.
        options: how.
        browser: whether a browser ran it, or a Python.

    Raises:
        DataError: it cannot be; a clause without a full stop.
    """
    expect("model", report.model, model.path.name)
    expect("sha256", report.sha256, ModelFile.of(model.path).sha256)
    expect("images", report.images, len(golden.images))
    expect("batch", report.batch, model.batch or options.batch)
    expect("compared", report.compared, bool(golden.tensors))
    expect("levels", tuple(level.level for level in report.levels), options.levels)
    within("threads", report.threads, 1, options.threads)
    check_environment(report.environment, browser=browser)
    _check_choices(report, options)
    expect("latency", report.latency is not None, options.repeats > 0)
    if report.latency is not None:
        expect("latency, runs", report.latency.runs, options.repeats)
        expect("latency, images", report.latency.images, model.batch or 1)
    _check_form(report)
    for level in report.levels:
        _check_level(level, golden, model)


def _check_choices(report: DeviceReport, options: RunOptions) -> None:
    """Check a report's entries about a library of kernels."""
    within("kernels", len(report.kernels), 0, 0 if options.kernels is None else len(KERNEL_OPERATORS))
    for choice in report.kernels:
        check_word("kernels", choice)


def check_consistency(report: DeviceReport) -> None:
    """Check that a report does not contradict itself.

    Raises:
        DataError: it does; a clause without a full stop.
    """
    _check_form(report)
    equal: dict[str, TensorResult] = {}
    for level in report.levels:
        for tensor in (*level.outputs, *level.tensors):
            if tensor.differing == 0:  # then it is the golden one, wherever it is so
                golden = equal.setdefault(tensor.tensor, tensor)
                for what in ("dtype", "shape", "elements", "sha256"):
                    where = f"level {level.level}, {excerpt(tensor.tensor)!r}, {what}"
                    expect(where, getattr(tensor, what), getattr(golden, what))


def _check_form(report: DeviceReport) -> None:
    """Check counts, names and digests as far as the report determines them."""
    for what in ("images", "batch", "threads"):
        within(what, getattr(report, what), 1, _MOST)
    if report.latency is not None:
        within("latency, runs", report.latency.runs, 1, _MOST)
        within("latency, images", report.latency.images, 1, _MOST)
        within("latency, median_ms", report.latency.median_ms, 0, _MAX_MS)
        within("latency, p95_ms", report.latency.p95_ms, report.latency.median_ms, _MAX_MS)
    levels = [level.level for level in report.levels]
    expect("levels known", bool(levels) and set(levels) <= set(OPTIMIZATION_LEVELS), True)
    expect("levels named once", len(set(levels)), len(levels))
    names = tuple(tensor.tensor for tensor in report.levels[0].tensors)
    outputs = tuple(tensor.tensor for tensor in report.levels[0].outputs)
    expect("tensors named once", len(set(names)), len(names))
    for level in report.levels:
        where = f"level {level.level}"
        expect(f"{where}, predictions", len(level.predictions), report.images if level.predictions else 0)
        for prediction in level.predictions:
            within(f"{where}, a prediction", prediction, -1, _MOST)
        expect(f"{where}, outputs", tuple(tensor.tensor for tensor in level.outputs), outputs)
        expect(f"{where}, tensors", tuple(tensor.tensor for tensor in level.tensors), names)
        for tensor in (*level.outputs, *level.tensors):
            _check_counts(f"{where}, {excerpt(tensor.tensor)!r}", tensor, report)


def _check_counts(where: str, result: TensorResult, report: DeviceReport) -> None:
    """Check the counts of one tensor, for any golden one."""
    check_word(where, result.dtype)
    if not _DIGEST.fullmatch(result.sha256):
        raise DataError(f"{where} has no digest")
    expect(f"{where}, images", result.shape[:1], (report.images,))
    within(f"{where}, axes", len(result.shape), 1, _MOST_AXES)
    if min(result.shape) < 0:
        raise DataError(f"{where} has the shape {list(result.shape)}")
    size = math.prod(result.shape)
    if not report.compared:
        expect(f"{where}, elements", result.elements, size)
        expect(f"{where}, differing", (result.differing, result.largest_step, result.index), (None, None, None))
        return
    if result.differing is None or result.largest_step is None:
        raise DataError(f"{where} was not compared")
    within(f"{where}, elements", result.elements, 1, _MOST)
    within(f"{where}, differing", result.differing, 0, result.elements)
    within(f"{where}, largest_step", result.largest_step, 0, math.inf if result.differing else 0)
    expect(f"{where}, index", result.index is not None, result.differing > 0)
    if result.elements != size:  # the golden tensor has another shape
        expect(f"{where}, differing", result.differing, result.elements)


def _check_level(level: LevelResult, golden: GoldenChunks, model: ExportedModel) -> None:
    """Check one level against the golden tensors, if there are any."""
    where = f"level {level.level}"
    expect(f"{where}, outputs", tuple(tensor.tensor for tensor in level.outputs), model.output_names)
    expect(f"{where}, predictions", len(level.predictions), len(golden.images) if model.has_classes else 0)
    for prediction in level.predictions:
        within(f"{where}, a prediction", prediction, -1, model.outputs[0].shape[0] - 1)
    names = tuple(golden.tensors) if golden.inner else ()
    expect(f"{where}, tensors", tuple(tensor.tensor for tensor in level.tensors), names)
    if golden.tensors:
        for tensor in (*level.outputs, *level.tensors):
            _check_tensor(f"{where}, {excerpt(tensor.tensor)!r}", tensor, golden)
        if model.has_classes and level.logits.differing == 0:
            expected = golden.tensors[level.logits.tensor].argmax(axis=1).tolist()
            expect(f"{where}, predictions", level.predictions, tuple(expected))


def _check_tensor(where: str, result: TensorResult, golden: GoldenChunks) -> None:
    """Check that one tensor's counts are possible, given the golden one."""
    expected = golden.tensors[result.tensor]
    differing = result.differing or 0
    expect(f"{where}, elements", result.elements, expected.size)
    if result.index is not None:
        expect(f"{where}, axes of index", len(result.index), expected.ndim)
        if not all(0 <= at < size for at, size in zip(result.index, expected.shape, strict=True)):
            raise DataError(f"{where}, index is {list(result.index)}, outside of the shape {list(expected.shape)}")
    if (result.dtype, result.shape) != (str(expected.dtype), expected.shape):
        if differing != expected.size:
            raise DataError(f"{where}, differing is {differing}, though type or shape are others than the golden ones")
        return
    numbers = expected.dtype.kind == "f"
    undefined = int(np.isnan(expected).sum()) if numbers else 0  # NaN differs from itself, whatever the digest is
    if differing < undefined:
        raise DataError(f"{where}, differing is {differing}, and {undefined} numbers there differ from anything")
    if not undefined and (result.sha256 == golden.digest(result.tensor)) != (differing == 0):
        raise DataError(
            f"{where}, sha256 is {result.sha256!r}, and has to be the golden one where nothing differs, and only there"
        )
    if differing and not numbers and not result.largest_step:
        raise DataError(f"{where}, largest_step is {result.largest_step}, though {differing} codes differ")
