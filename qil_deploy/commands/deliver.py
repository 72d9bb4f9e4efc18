"""Export, verify and time the frozen stages and the float network of a finished training run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qil_deploy.errors import CertificateError, ModelFileError
from qil_deploy.files import write_text
from qil_deploy.terminal import Console, Table

if TYPE_CHECKING:
    from qil_deploy.runtime_tests.backends import CodeReader
    from qil_deploy.runtime_tests.exported_model import Predictor
    from qil_deploy.training.train import RunResult, StageResult

SCHEMA = "qil_deploy.results/1"


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One exported model and what was measured on the whole test set; accuracies in percent.

    Attributes:
        name: stage.
        model: the ONNX file.
        accuracy: before freezing (fake quantization; for the float network, its own).
        frozen_at_once: frozen without further training.
        frozen_accuracy: frozen and trained on: what the file computes, in PyTorch.
        runtime_accuracy: in ONNX Runtime, default optimization level.
        differing_logits: most logits that differ from the integer reference, over ONNX Runtime at all four optimization
            levels and the frozen PyTorch model; None for the float network.
        changed_predictions: predictions that differ from the model before freezing.
        images: size of the test set.
        size: bytes of the ONNX file.
        latency_ms: median of one image, one thread.
    """

    name: str
    model: Path
    accuracy: float
    frozen_at_once: float | None
    frozen_accuracy: float | None
    runtime_accuracy: float
    differing_logits: int | None
    changed_predictions: int | None
    images: int
    size: int
    latency_ms: float


def deliver(
    result: RunResult, folder: Path, console: Console, *, repeats: int = 200, trusted_model: str | None = None
) -> list[Delivery]:
    """Export, verify and time the float network and every frozen stage of a run; write `results.json` beside them.

    Args:
        result: of `training.train`.
        folder: where the ONNX files and reports go.
        console: for progress.
        repeats: measured runs per model.
        trusted_model: the user's function that builds the run's network, `module:function`, where it has one.

    Raises:
        CertificateError: an exported model does not compute what was trained.
        ConfigError: the run's network is neither one of ours nor `trusted_model`.
        ModelFileError: one cannot be timed.
    """
    from qil_deploy.runtime_tests import BenchOptions, benchmark, write_report
    from qil_deploy.runtime_tests.bench.report import WARM

    stages = [result.float_result, *(stage for stage in result.stages if stage.frozen)]
    models = [_export(stage, folder, trusted_model) for stage in stages]
    checks = [_check(stage, model, folder, console, trusted_model) for stage, model in zip(stages, models, strict=True)]
    console.print("Timing the models side by side ...")
    bench = benchmark(models, BenchOptions(threads=(1,), caches=(WARM,), repeats=repeats))
    write_report(folder / "bench.json", bench)
    for sentence in bench.warnings:
        console.print(f"Note: {sentence}", soft_wrap=True)
    if bench.failures:
        raise ModelFileError(bench.failures[0].reason)
    deliveries = [
        Delivery(
            name=stage.name,
            model=model,
            accuracy=stage.accuracy,
            frozen_at_once=stage.frozen_at_once,
            frozen_accuracy=stage.frozen_accuracy,
            runtime_accuracy=check.accuracy,
            differing_logits=check.differing_logits,
            changed_predictions=check.changed_predictions,
            images=check.images,
            size=model.stat().st_size,
            latency_ms=latency.median_ms,
        )
        for stage, model, check, latency in zip(stages, models, checks, bench.latencies, strict=True)
    ]
    lines = [{**asdict(delivery), "model": delivery.model.name} for delivery in deliveries]
    write_text(folder / "results.json", json.dumps({"schema": SCHEMA, "models": lines}, indent=2) + "\n")
    return deliveries


def delivery_table(deliveries: list[Delivery]) -> Table:
    """Table of all measurements, one column per model."""
    names, *rows = zip(HEADINGS, *(delivery_cells(delivery, deliveries[0]) for delivery in deliveries), strict=True)
    table = Table(f"{deliveries[0].images:,} test images; latency of one image on one thread", names)
    for row in rows:
        table.row(*row)
    return table


HEADINGS = (
    "model",
    "accuracy before freezing",
    "frozen at once",
    "frozen, trained on",
    "in ONNX Runtime",
    "differing logits",
    "changed predictions",
    "file",
    "latency",
)


def delivery_cells(delivery: Delivery, first: Delivery) -> list[str]:
    """Return the cells of one row, in the order of `HEADINGS`; sizes and latencies also as shares of `first`."""

    def percent(value: float | None) -> str:
        return "" if value is None else f"{value:.2f} %"

    def count(value: int | None) -> str:
        return "" if value is None else f"{value:,}"

    return [
        delivery.name,
        percent(delivery.accuracy),
        percent(delivery.frozen_at_once),
        percent(delivery.frozen_accuracy),
        percent(delivery.runtime_accuracy),
        count(delivery.differing_logits),
        count(delivery.changed_predictions),
        f"{delivery.size:,} B (1/{first.size / delivery.size:.1f})",
        f"{delivery.latency_ms:.3f} ms (1/{first.latency_ms / delivery.latency_ms:.2f})",
    ]


def _export(stage: StageResult, folder: Path, trusted_model: str | None) -> Path:
    from torch import fx

    from qil_deploy.checkpoint import load_model
    from qil_deploy.export import export_float_onnx, export_onnx
    from qil_deploy.training.models import model_builder

    info, model = load_model(stage.frozen or stage.checkpoint, model_builder(trusted_model))
    path = folder / f"{stage.name}.onnx"
    names = info.class_names
    if isinstance(model, fx.GraphModule):
        export_onnx(model, path, preprocessing=info.preprocessing, class_names=names, data=info.data)
    else:
        export_float_onnx(model, path, preprocessing=info.preprocessing, class_names=names, data=info.data)
    return path


@dataclass(frozen=True, kw_only=True)
class _Check:
    """Result of the verification of one model; the last two are None for the float network."""

    images: int
    accuracy: float
    differing_logits: int | None = None
    changed_predictions: int | None = None


def _check(stage: StageResult, model: Path, folder: Path, console: Console, trusted_model: str | None) -> _Check:
    from qil_deploy.datasets import load_images
    from qil_deploy.runtime_tests import verify, write_report
    from qil_deploy.runtime_tests.backends import FROZEN, UNFROZEN, onnx_backend_name
    from qil_deploy.runtime_tests.exported_model import read_exported_model
    from qil_deploy.runtime_tests.verify import batch_size_for

    from .predictors import checkpoint_predictors, frozen_codes

    exported = read_exported_model(model)
    images = load_images(exported.data or "", "test", preprocessing=exported.preprocessing)
    console.print(f"Verifying {model.name} on {len(images)} test images ...")
    others: dict[str, Predictor] = {}
    codes: dict[str, CodeReader] = {}
    if stage.frozen is not None:
        others = {
            FROZEN: checkpoint_predictors(stage.frozen, trusted_model)[FROZEN],
            UNFROZEN: checkpoint_predictors(stage.checkpoint, trusted_model)[UNFROZEN],
        }
        codes = {FROZEN: frozen_codes(stage.frozen, trusted_model)}
    report = verify(model, images.batches(batch_size_for(exported.preprocessing.shape)), others=others, codes=codes)
    path = folder / f"{stage.name}_verify.json"
    write_report(path, report)
    if report.exact is False:
        raise CertificateError(f"{model} does not compute the same as the trained model; see {path}.")
    backends = {backend.name: backend for backend in report.backends}
    if stage.frozen is None:
        return _Check(images=len(images), accuracy=_percent(report.reference_accuracy))
    return _Check(
        images=len(images),
        accuracy=_percent(backends[onnx_backend_name("all")].accuracy),
        differing_logits=max(b.differing_logits for b in report.backends if b.name != UNFROZEN),
        changed_predictions=backends[UNFROZEN].changed_predictions,
    )


def _percent(accuracy: float | None) -> float:
    if accuracy is None:
        raise TypeError("a recipe trains networks with one row of logits, whose accuracy is measured")
    return 100 * accuracy
