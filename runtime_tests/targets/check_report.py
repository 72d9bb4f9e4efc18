"""What of a target's report is believed.

The target counts what differs. Its counts are taken as they are, within their bounds; but where it claims that a tensor
has no difference, the digest of what it computed has to be that of the golden one.
"""

from __future__ import annotations

import math

import numpy as np

from qil_deploy.errors import DataError
from qil_deploy.exported_names import OUTPUT_NAME
from qil_deploy.runtime_tests.exported_model import ExportedModel
from qil_deploy.runtime_tests.golden_chunks import GoldenChunks
from qil_deploy.runtime_tests.reports import ModelFile

from .checks import check_environment, check_word, expect, within
from .options import RunOptions
from .report import DeviceReport, LevelResult, TensorResult

_MAX_MS = 1e9


def check_report(
    report: DeviceReport, model: ExportedModel, golden: GoldenChunks, options: RunOptions, *, browser: bool
) -> None:
    """Check that a report can be that of a run, and that what it calls equal is.

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
    _check_latency(report, options.repeats, model.batch or 1)
    for level in report.levels:
        _check_level(level, golden, len(model.class_names))


def _check_latency(report: DeviceReport, repeats: int, images: int) -> None:
    latency = report.latency
    expect("latency", latency is not None, repeats > 0)
    if latency is not None:
        expect("latency, runs", latency.runs, repeats)
        expect("latency, images", latency.images, images)
        within("latency, median_ms", latency.median_ms, 0, _MAX_MS)
        within("latency, p95_ms", latency.p95_ms, latency.median_ms, _MAX_MS)


def _check_level(level: LevelResult, golden: GoldenChunks, classes: int) -> None:
    where = f"level {level.level}"
    expect(f"{where}, predictions", len(level.predictions), len(golden.images))
    for prediction in level.predictions:
        within(f"{where}, a prediction", prediction, -1, classes - 1)
    expect(f"{where}, logits", level.logits.tensor, OUTPUT_NAME)
    names = tuple(golden.tensors) if golden.inner else ()
    expect(f"{where}, tensors", tuple(tensor.tensor for tensor in level.tensors), names)
    for tensor in (level.logits, *level.tensors):
        _check_tensor(where, tensor, golden)
    if level.logits.differing == 0:
        expected = golden.tensors[OUTPUT_NAME].argmax(axis=1).tolist()
        expect(f"{where}, predictions", level.predictions, tuple(expected))


def _check_tensor(where: str, result: TensorResult, golden: GoldenChunks) -> None:
    where = f"{where}, {result.tensor!r}"
    check_word(where, result.dtype)
    check_word(where, result.sha256)
    expect(f"{where}, images", result.shape[:1], (len(golden.images),))
    if not all(size >= 0 for size in result.shape):
        raise DataError(f"{where} has the shape {list(result.shape)}")
    expect(f"{where}, elements", result.elements, math.prod(result.shape))
    expected = golden.tensors.get(result.tensor)
    if expected is None:
        expect(f"{where}, differing", (result.differing, result.largest_step, result.index), (None, None, None))
        return
    if result.differing is None or result.largest_step is None:
        raise DataError(f"{where} was not compared")
    within(f"{where}, differing", result.differing, 0, result.elements)
    within(f"{where}, largest_step", result.largest_step, 0, math.inf)
    expect(f"{where}, index", result.index is not None, result.differing > 0)
    if result.index is not None:
        _check_index(where, result.index, result.shape)
    alike = (result.dtype, result.shape) == (str(expected.dtype), expected.shape)
    if not alike:
        expect(f"{where}, differing", result.differing, result.elements)
    # Zero is equal to minus zero, whose bytes are other ones.
    elif result.differing == 0 and (expected.dtype.kind != "f" or np.all(expected)):
        expect(f"{where}, sha256", result.sha256, golden.digest(result.tensor))


def _check_index(where: str, index: tuple[int, ...], shape: tuple[int, ...]) -> None:
    expect(f"{where}, axes of index", len(index), len(shape))
    for position, size in zip(index, shape, strict=True):
        within(f"{where}, index", position, 0, size - 1)
