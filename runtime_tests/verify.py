"""Does ONNX Runtime compute what was trained? Every logit against the integer reference, and the accuracy.

The integer reference runs once over the images. ONNX Runtime at each graph-optimization level is compared
with it, and so is any other function from images to logits, such as the frozen PyTorch model (the caller
supplies it; this package needs no torch). All go batch by batch, in memory that does not grow with the data
set. Two logits are equal when they are the same float32 number: no tolerance, and NaN equals nothing.

A file with float parts (`paper` placement, or `allow_float`) has no integer reference: float sums depend on the kernel.
There everything is compared with ONNX Runtime without its optimizer, and nothing has to be equal unless the caller says
so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qil_deploy.errors import ConfigError, DataError, ModelFileError
from qil_deploy.exported_names import OUTPUT_NAME
from qil_deploy.reference import IntegerReference

from .environment import Environment, describe_environment
from .exported_model import ExportedModel, Predictor, read_exported_model
from .reports import ModelFile
from .sessions import OPTIMIZATION_LEVELS

REFERENCE = "integer reference"
UNOPTIMIZED = "disabled"
FROZEN = "frozen PyTorch"
UNFROZEN = "unfrozen PyTorch"
_NO_PREDICTION = -1


@dataclass(frozen=True, kw_only=True)
class BackendResult:
    """One backend against the reference, over all images.

    Attributes:
        name: "ONNX Runtime (LEVEL)" or the name the caller gave.
        must_equal: whether a difference makes the verification fail.
        accuracy: top-1, a fraction in [0, 1].
        differing_logits: how many of images x classes logits are not equal.
        changed_predictions: how many images get another class.
        largest_difference: largest absolute difference of two finite logits.
        not_finite: how many logits are NaN or infinite.
    """

    name: str
    must_equal: bool
    accuracy: float
    differing_logits: int
    changed_predictions: int
    largest_difference: float
    not_finite: int


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """Outcome of `verify`.

    Attributes:
        schema: `SCHEMA`.
        model: the file.
        format: "qlinear" or "qdq".
        input: "uint8" or "float".
        images, classes: size of the comparison.
        batch_size, threads: how it was run.
        reference: what the backends are compared with: the integer reference, or for a file with float parts ONNX
            Runtime without its optimizer.
        reference_accuracy: top-1 of the reference, a fraction in [0, 1].
        exact: whether every backend that must equal the reference does, in every logit; None if none must.
        backends: one entry per backend, in the order they ran.
        warnings: sentences about what makes the outcome say less than it seems to.
        environment: versions and processor.
    """

    SCHEMA: ClassVar[str] = "qil_deploy.verify/1"

    schema: str
    model: ModelFile
    format: str
    input: str
    images: int
    classes: int
    batch_size: int
    threads: int
    reference: str
    reference_accuracy: float
    exact: bool | None
    backends: tuple[BackendResult, ...]
    warnings: tuple[str, ...]
    environment: Environment


def exact_levels(format_: str) -> tuple[str, ...]:
    """Return the optimization levels at which a file of this format has to equal the integer reference.

    Where ONNX Runtime does not fuse a QDQ file, it computes in float.
    """
    return tuple(OPTIMIZATION_LEVELS) if format_ == "qlinear" else ("all",)


def onnx_backend_name(level: str) -> str:
    """Name of ONNX Runtime at one graph-optimization level, as it stands in the report."""
    return f"ONNX Runtime ({level})"


def verify(  # noqa: PLR0913 - every argument is an option of its own
    path: Path,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    others: Mapping[str, Predictor] | None = None,
    must_equal: Collection[str] | None = None,
    levels: Sequence[str] = tuple(OPTIMIZATION_LEVELS),
    batch_size: int = 250,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Compare ONNX Runtime and other backends with the integer reference, logit by logit.

    Args:
        path: an exported model, format "qlinear" or "qdq".
        images: uint8, [N, C, H, W].
        labels: integers, [N], in [0, classes).
        others: further backends by name: functions from uint8 images to float32 logits [N, classes].
        must_equal: names of the backends that have to equal the reference. By default these are ONNX Runtime
            at every level for "qlinear", at level "all" for "qdq" (at the others the runtime may compute in
            float), and all of `others` except "unfrozen PyTorch", which shows what freezing changed. None for a file
            with float parts.
        levels: graph-optimization levels to run.
        batch_size: images per run.
        threads: threads of ONNX Runtime.
        progress: called after each batch with the number of images done and the number of all images.

    Raises:
        ConfigError: an option is out of range, or nothing would be compared that has to be equal.
        DataError: no images; images or labels of the wrong type, shape or range; wrong logits from `others`.
        ModelFileError: the file is missing, damaged, not exported by this project, or cannot be run.
    """
    model = read_exported_model(path)
    _check_data(model, images, labels)
    predictors = _onnx_predictors(model, levels, threads) | _check_others(others or {}, levels)
    required = _required(model, predictors, others or {}, must_equal)
    if batch_size < 1:
        raise ConfigError(f"batch size is {batch_size}; it must be at least 1.")
    pivot, reference = _reference(model, threads)
    predictors.pop(pivot, None)
    classes = len(model.class_names)

    tallies = {name: _Tally() for name in predictors}
    reference_tally = _Tally()
    first_logits: NDArray[np.float32] | None = None
    constant = True
    for start in range(0, len(images), batch_size):
        batch, truth = images[start : start + batch_size], labels[start : start + batch_size]
        expected = _check_logits(pivot, reference(batch), len(batch), classes)
        reference_tally.add(expected, expected, truth)
        first_logits = expected[:1] if first_logits is None else first_logits
        constant = constant and bool((expected == first_logits).all())
        for name, predict in predictors.items():
            tallies[name].add(_check_logits(name, predict(batch), len(batch), classes), expected, truth)
        if progress is not None:
            progress(start + len(batch), len(images))

    backends = tuple(tally.result(name, name in required) for name, tally in tallies.items())
    return VerifyReport(
        schema=VerifyReport.SCHEMA,
        model=ModelFile.of(path),
        format=model.format,
        input=model.input,
        images=len(images),
        classes=classes,
        batch_size=batch_size,
        threads=threads,
        reference=pivot,
        reference_accuracy=reference_tally.result(pivot, True).accuracy,
        exact=all(backend.differing_logits == 0 for backend in backends if backend.must_equal) if required else None,
        backends=backends,
        warnings=_warnings(model, pivot, len(images), constant),
        environment=describe_environment(),
    )


class _Tally:
    """Running counts of one backend against the reference."""

    def __init__(self) -> None:
        self.images = 0
        self.correct = 0
        self.differing = 0
        self.changed = 0
        self.largest = 0.0
        self.not_finite = 0

    def add(self, logits: NDArray[np.float32], expected: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        predictions = _predictions(logits)
        finite = np.isfinite(logits)
        both = finite & np.isfinite(expected)
        distances = np.abs(logits[both].astype(np.float64) - expected[both].astype(np.float64))
        self.images += len(labels)
        self.correct += int((predictions == labels).sum())
        self.differing += int((logits != expected).sum())  # NaN differs from everything, itself included
        self.changed += int((predictions != _predictions(expected)).sum())
        self.largest = max(self.largest, float(distances.max(initial=0.0)))
        self.not_finite += int((~finite).sum())

    def result(self, name: str, must_equal: bool) -> BackendResult:
        return BackendResult(
            name=name,
            must_equal=must_equal,
            accuracy=self.correct / self.images,
            differing_logits=self.differing,
            changed_predictions=self.changed,
            largest_difference=self.largest,
            not_finite=self.not_finite,
        )


def _predictions(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the class of each image's largest logit (the first of equals), or none where one is NaN."""
    return np.where(np.isnan(logits).any(axis=1), _NO_PREDICTION, logits.argmax(axis=1)).astype(np.int64)


def _reference(model: ExportedModel, threads: int) -> tuple[str, Predictor]:
    """Return name and predictor of what everything is compared with."""
    if model.float_parts:
        return onnx_backend_name(UNOPTIMIZED), model.onnx_predictor(threads=threads, level=UNOPTIMIZED)
    reference = IntegerReference(model.graph)
    return REFERENCE, lambda images: model.in_batches(lambda x: {OUTPUT_NAME: reference.run(x)}, images)[OUTPUT_NAME]


def _onnx_predictors(model: ExportedModel, levels: Sequence[str], threads: int) -> dict[str, Predictor]:
    if model.format == "float":
        raise ModelFileError(
            f"{model.path} is a float32 baseline, for which there is no integer reference; "
            "verify a model of format qlinear or qdq."
        )
    return {onnx_backend_name(level): model.onnx_predictor(threads=threads, level=level) for level in levels}


def _check_others(others: Mapping[str, Predictor], levels: Sequence[str]) -> dict[str, Predictor]:
    taken = {REFERENCE, *map(onnx_backend_name, levels)}.intersection(others)
    if taken:
        raise ConfigError(f"backend names {sorted(taken)} are taken; give the other backends other names.")
    return dict(others)


def _required(
    model: ExportedModel,
    predictors: Collection[str],
    others: Collection[str],
    must_equal: Collection[str] | None,
) -> frozenset[str]:
    if must_equal is not None:
        required = frozenset(must_equal)
        unknown = sorted(required.difference(predictors))
        if unknown:
            raise ConfigError(f"must_equal names {unknown}; the backends are {', '.join(predictors)}.")
    else:
        if model.float_parts:
            return frozenset()
        candidates = {*map(onnx_backend_name, exact_levels(model.format)), *others} - {UNFROZEN}
        required = frozenset(candidates.intersection(predictors))
    if not required:
        raise ConfigError(
            f"nothing in this verification of a {model.format} model has to equal the integer reference; "
            "add level 'all' or name a backend in must_equal."
        )
    return required


def _check_data(model: ExportedModel, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
    if len(images) == 0:
        raise DataError(f"there are no images to verify {model.path} with; choose a data set that is not empty.")
    model.preprocessing.check(images)
    classes = len(model.class_names)
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise DataError(
            f"labels are {labels.dtype} of shape {list(labels.shape)}; {len(images)} images need integers of "
            f"shape [{len(images)}]."
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"labels run from {labels.min()} to {labels.max()}, but {model.path} has {classes} classes: "
            f"0..{classes - 1} are allowed. Verify with the data set the model was trained on."
        )


def _check_logits(name: str, logits: NDArray[Any], images: int, classes: int) -> NDArray[np.float32]:
    if logits.dtype != np.float32 or logits.shape != (images, classes):
        raise DataError(
            f"{name} returned {logits.dtype} logits of shape {list(logits.shape)}; "
            f"float32 of shape [{images}, {classes}] was expected."
        )
    return logits


def _warnings(model: ExportedModel, pivot: str, images: int, constant: bool) -> tuple[str, ...]:
    warnings = []
    if model.float_parts:
        warnings.append(
            f"{len(model.float_parts)} operators of this file compute in float, so its logits depend on kernels and "
            "optimizer in their last bits; integer placement without allow_float has none."
        )
    if constant and images > 1:
        warnings.append(f"{pivot} returns the same logits for every image: equality proves little.")
    return tuple(warnings)
