"""Compare every number of every output of ONNX Runtime with the integer reference, and measure the accuracy.

The integer reference runs once over the images. ONNX Runtime at each graph-optimization level is compared
with it, and so is any other function from images to outputs, such as the frozen PyTorch model (the caller
supplies it; this package needs no torch). All go batch by batch, in memory that does not grow with the data
set. Two numbers are equal when they are the same float32 number, or the same code: no tolerance, and NaN equals
nothing.

What is measured depends on the outputs and the labels: top-1 for rows of logits, mean IoU for a map and labels of its
pixels, average precision for boxes, where the file says how they are decoded; or what the caller asks for.

If a backend differs that must not, a few of the images it differs on are run again, every code of both is
compared, and the first node that differs is named (`differences`).

A file with float parts (`paper` placement, or `allow_float`) has no integer reference: float sums depend on the kernel.
There everything is compared with ONNX Runtime without its optimizer, and nothing has to be equal unless the caller says
so. For a float32 baseline, the accuracy is measured in ONNX Runtime's default mode, and nothing is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from qil_deploy.datasets import ImageBatches, ImageSet
from qil_deploy.errors import ConfigError, DataError
from qil_deploy.metrics import AveragePrecision, MeanIoU, Metric, Top1

from .affordable import require_affordable
from .backends import CodeReader, ExecutedGraph, code_reader
from .differences import Comparison, compare_codes
from .environment import Environment, describe_environment
from .exported_model import FLOAT, ExportedModel, Outputs, Predictor, read_exported_model
from .kernel_library import KernelLibrary, operators_in, why_unused
from .logit_counts import BackendResult, DifferingImages, LogitCounts
from .reports import ModelFile
from .sessions import OPTIMIZATION_LEVELS
from .verified_backends import (
    check_others,
    onnx_predictors,
    pairs_to_compare,
    reference_of,
    required_backends,
    with_and_without_kernels,
)

_MAX_BATCH: Final = 250
_PIXELS_OF_A_BATCH: Final = 1 << 22


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """Outcome of `verify`.

    Attributes:
        schema: `SCHEMA`.
        model: the file.
        format: "qlinear" or "qdq"; or "float", a baseline with only its accuracy measured.
        input: "uint8" or "float".
        images, classes: size of the comparison; classes are 0 for a network without names for them.
        batch_size, threads: how it was run.
        reference: what the backends are compared with: the integer reference, or for a file with float parts ONNX
            Runtime without its optimizer; for a float baseline, what its accuracy was measured in.
        reference_accuracy: the metric of the reference, a fraction in [0, 1]; None if none was measured.
        exact: whether every backend that must equal the reference does, in every number; None if none must.
        backends: one entry per backend, in the order they ran; none for a float baseline.
        comparisons: the first node that differs, for each backend that differs but must not, or for the two that were
            requested.
        warnings: sentences about why the outcome says less than it seems to.
        environment: versions and processor.
        metric: what the accuracy is: "top-1", "mean IoU", "AP at IoU 0.5" or another; empty if none was measured.
        numbers: how many numbers all outputs have per image; None in earlier reports: `classes`.
    """

    SCHEMA: ClassVar[str] = "qil_deploy.verify/2"

    schema: str
    model: ModelFile
    format: str
    input: str
    images: int
    classes: int
    batch_size: int
    threads: int
    reference: str
    reference_accuracy: float | None
    exact: bool | None
    backends: tuple[BackendResult, ...]
    comparisons: tuple[Comparison, ...]
    warnings: tuple[str, ...]
    environment: Environment
    metric: str = "top-1"
    numbers: int | None = None


def batch_size_for(shape: tuple[int, int, int]) -> int:
    """Return how many images of this shape a batch should hold: 250, or fewer where they are large."""
    return min(_MAX_BATCH, max(1, _PIXELS_OF_A_BATCH // int(np.prod(shape))))


def verify(  # noqa: PLR0913 - every argument is an option of its own
    path: str | PathLike[str],
    data: ImageBatches | ImageSet,
    *,
    others: Mapping[str, Predictor] | None = None,
    codes: Mapping[str, CodeReader] | None = None,
    must_equal: Collection[str] | None = None,
    levels: Sequence[str] = tuple(OPTIMIZATION_LEVELS),
    threads: int = 1,
    between: tuple[str, str] | None = None,
    first_difference: bool = False,
    metric: Callable[[], Metric] | None = None,
    kernels: KernelLibrary | None = None,
    progress: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> VerifyReport:
    """Compare ONNX Runtime and other backends with the integer reference, number by number.

    For a float32 baseline, which has none, the accuracy is measured.

    Args:
        path: an exported model.
        data: uint8 images [C, H, W] with labels, and how many are run at a time (`batch_size_for` gives it for an
            `ImageSet`). Labels are [N] in [0, classes) for a row of logits, [N, H, W] for a map of classes,
            [N, most, 5] for boxes (`pad_boxes`), or any [N] for none.
        others: further backends by name: functions from uint8 images to the only output, or to all by name
            (`Predictor`).
        codes: for those that have them, functions from uint8 images to every code, by its name in the graph.
        must_equal: names of the backends that have to equal the reference. By default these are ONNX Runtime
            at every level for "qlinear", at level "all" for "qdq" (at the others the runtime may compute in
            float), and all of `others` except "unfrozen PyTorch", which shows what freezing changed. None for a file
            with float parts.
        levels: graph-optimization levels to run; a float32 baseline runs at "all", ONNX Runtime's default.
        threads: threads of ONNX Runtime.
        between: names of two backends that are compared node by node; by default the reference and each backend that
            has to be equal to it and is not.
        first_difference: whether to do so even if no logit differs.
        metric: makes the metric, instead of the labels' choice (module docstring).
        kernels: a library of kernels: ONNX Runtime runs at every level with it, too, and has to be equal to ONNX
            Runtime without, in every code of a few images.
        progress: called after each batch with the number of images done and the number of all images.
        stop: called after each batch; if true, the report covers the images done so far, and says so.

    Raises:
        ConfigError: an option is out of range, nothing that has to be equal would be compared, or a float32 baseline
            would.
        DataError: no images; images or labels of the wrong type, shape or range; wrong logits from `others`.
        ModelFileError: the file is missing, damaged, not exported by this project, or cannot be run.
    """
    model = read_exported_model(Path(path))
    if model.format == FLOAT and (others or must_equal or between is not None or first_difference or kernels):
        raise ConfigError(
            f"{path} is a float32 baseline: its accuracy is measured, and there is no integer reference that anything "
            "could be compared with. Verify it without a checkpoint and without a search for differences."
        )
    if isinstance(data, ImageSet):
        data = data.batches(batch_size_for(model.preprocessing.shape))
    _check_data(model, data)
    at_once = require_affordable(model)
    predictors = onnx_predictors(model, levels, threads, at_once, kernels) | check_others(others or {}, levels)
    required = required_backends(model, predictors, others or {}, must_equal)
    pivot, reference = reference_of(model, threads)
    predictors.pop(pivot, None)
    beside = [pair for level in levels if (pair := with_and_without_kernels(level))[1] in predictors]
    pairs = tuple(dict.fromkeys((*pairs_to_compare(pivot, predictors, required, between), *beside)))
    chosen = metric or _metric(model, data)

    counts = {name: LogitCounts(model, chosen) for name in (pivot, *predictors)}
    differing = {pair: DifferingImages(pair) for pair in pairs}
    first: Outputs | None = None
    constant = True
    done = 0
    for batch in data:
        model.preprocessing.check(batch.images)
        outputs = {
            name: _checked_outputs(name, predict(batch.images), len(batch), model)
            for name, predict in {pivot: reference, **predictors}.items()
        }
        for name, count in counts.items():
            count.add(outputs[name], outputs[pivot], batch.labels)
        for found in differing.values():
            found.add(outputs, batch.images, done)
        first = {name: value[:1] for name, value in outputs[pivot].items()} if first is None else first
        constant = constant and all(bool((value == first[name]).all()) for name, value in outputs[pivot].items())
        done += len(batch)
        if progress is not None:
            progress(done, len(data))
        if stop is not None and stop():
            break

    searched = pairs if first_difference or between is not None else beside
    comparisons = _compare_nodes(
        model, differing, threads=threads, others=codes or {}, always=searched, kernels=kernels
    )
    reference_result = counts.pop(pivot).result(pivot, True)
    backends = tuple(count.result(name, name in required) for name, count in counts.items())
    return VerifyReport(
        schema=VerifyReport.SCHEMA,
        model=ModelFile.of(model.path),
        format=model.format,
        input=model.input,
        images=done,
        classes=len(model.class_names),
        batch_size=data.batch_size,
        threads=threads,
        reference=pivot,
        reference_accuracy=reference_result.accuracy,
        exact=all(backend.differing_logits == 0 for backend in backends if backend.must_equal) if required else None,
        backends=backends,
        comparisons=comparisons,
        warnings=(
            *_warnings(model, reference_result, (done, len(data)), constant=constant),
            *_kernel_warnings(model, kernels),
        ),
        environment=describe_environment(),
        metric="" if chosen is None else chosen().name,
        numbers=model.numbers,
    )


def _compare_nodes(
    model: ExportedModel,
    differing: Mapping[tuple[str, str], DifferingImages],
    *,
    threads: int,
    others: Mapping[str, CodeReader],
    always: Collection[tuple[str, str]],
    kernels: KernelLibrary | None,
) -> tuple[Comparison, ...]:
    """Run a few images again and compare every code, for pairs whose outputs differ and those in `always`."""
    chosen = {pair: images for pair, images in differing.items() if pair in always or images.differ}
    if not chosen:
        return ()
    graph = ExecutedGraph.of(model)
    comparisons = []
    for pair, images in chosen.items():
        first, second = (
            {**code_reader(model, graph, name, threads=threads, others=others, kernels=kernels)(images.images())}
            | images.outputs(name)
            for name in pair
        )
        comparisons.append(compare_codes(graph, pair, (first, second), images.indices()))
    return tuple(comparisons)


def _kernel_warnings(model: ExportedModel, kernels: KernelLibrary | None) -> list[str]:
    """Explain where kernels had nothing to compute."""
    return [] if kernels is None else why_unused(model.graph, kernels.choices_for(operators_in(model.graph)))


def _check_data(model: ExportedModel, data: ImageBatches) -> None:
    if len(data) == 0:
        raise DataError(f"there are no images to verify {model.path} with; choose a data set that is not empty.")
    if data.batch_size < 1:
        raise ConfigError(f"batch size is {data.batch_size}; it must be at least 1.")
    labels = data.labels
    if not model.has_classes:
        if labels.shape[:1] != (len(data),):
            raise DataError(f"labels are of shape {list(labels.shape)}; {len(data)} images need [{len(data)}, ...].")
        return
    classes = model.outputs[0].shape[0]
    if labels.shape != (len(data),) or labels.dtype.kind not in "iu":
        raise DataError(
            f"labels are {labels.dtype} of shape {list(labels.shape)}; {len(data)} images need integers of "
            f"shape [{len(data)}]."
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"labels run from {labels.min()} to {labels.max()}, but {model.path} has {classes} classes: "
            f"0..{classes - 1} are allowed. Verify with the data set the model was trained on."
        )


def _metric(model: ExportedModel, data: ImageBatches) -> Callable[[], Metric] | None:
    """Return the function that makes the metric for outputs and labels."""
    first, labels, boxes = model.outputs[0], data.labels, model.boxes
    if model.has_classes:
        return lambda: Top1(first.name)
    if boxes is not None and labels.ndim == 3 and labels.dtype.kind == "f":
        return lambda: AveragePrecision(boxes)
    if labels.ndim == 3 and labels.dtype.kind in "iu" and len(first.shape) == 3:
        return lambda: MeanIoU(first.name)
    return None


def _checked_outputs(
    name: str, found: NDArray[Any] | Mapping[str, NDArray[Any]], images: int, model: ExportedModel
) -> Outputs:
    """Return a backend's results in the form that the file returns."""
    outputs = found if isinstance(found, Mapping) else {model.outputs[0].name: found}
    missing = [output.name for output in model.outputs if output.name not in outputs]
    if missing:
        raise DataError(f"{name} returned no output {missing[0]!r}, only {', '.join(outputs)}.")
    checked = {output.name: output.as_returned(outputs[output.name]) for output in model.outputs}
    for output in model.outputs:
        value, what = checked[output.name], "logits" if output.kind == "logits" else output.name
        if value.dtype != output.dtype or value.shape != (images, *output.shape):
            raise DataError(
                f"{name} returned {value.dtype} {what} of shape {list(value.shape)}; "
                f"{output.dtype} of shape {[images, *output.shape]} was expected."
            )
    return checked


def _warnings(
    model: ExportedModel, reference: BackendResult, images: tuple[int, int], *, constant: bool
) -> tuple[str, ...]:
    """Return reservations about the outcome; `images`: how many were compared, of how many."""
    warnings = []
    if images[0] < images[1]:
        warnings.append(f"Interrupted: this is of the first {images[0]:,} of {images[1]:,} images.")
    if model.float_parts:
        warnings.append(
            f"{len(model.float_parts)} operators of this file compute in float, so its logits depend on kernels and "
            "optimizer in their last bits; integer placement without allow_float has none."
        )
    if reference.not_finite:
        warnings.append(
            f"{reference.not_finite} logits of {reference.name} are NaN or infinite, and NaN equals nothing: a number "
            "in the file is damaged; export the model again."
        )
    if constant and images[0] > 1:
        little = "the accuracy says" if model.format == FLOAT else "equality proves"
        what = "logits" if model.has_classes and len(model.outputs) == 1 else "numbers"
        warnings.append(f"{reference.name} returns the same {what} for every image: {little} little.")
    return tuple(warnings)
