"""The report of a training run as one HTML page, pictures embedded, and as JSON.

    RUN/report.html     for people: accuracies, curves, intervals over histograms, shares per layer, confusions
    RUN/report.json     for machines: a `run_report.RunReport`

Histograms are of samples and images come batch by batch, so that memory holds one network and one batch. An unfinished
run is reported up to where it got.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from qil_deploy.accuracy import top1_percent
from qil_deploy.checkpoint import Builder, load_model, read_info
from qil_deploy.datasets import load_batches
from qil_deploy.errors import DataError
from qil_deploy.files import write_text
from qil_deploy.reports import write_report
from qil_deploy.terminal import Progress
from qil_deploy.training.metrics_file import read_epochs
from qil_deploy.training.models import model_builder
from qil_deploy.training.recipe import Recipe, recipe_from_dict

from .interval_shares import QuantizedValues, input_quantizers
from .plots import histogram_figure, interval_activations, png
from .report_page import Histogram, Histograms, render
from .run_report import (
    Distillation,
    RunReport,
    describe_versions,
    find_confusions,
    layer_shares,
    read_prepared,
    spread_images,
    stage_report,
)

HTML_NAME, JSON_NAME = "report.html", "report.json"

ACTIVATION_IMAGES = 256
_BATCH_SIZE = 250


def write_html_report(
    folder: Path,
    *,
    trusted_model: str | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> RunReport:
    """Write `report.html` and `report.json` of a run.

    Args:
        folder: of the run.
        trusted_model: the user's function that builds its network, `module:function`, where it has one.
        device: where its networks are evaluated.
        progress: a started progress display; one is made if None.

    Returns:
        What `report.json` holds.

    Raises:
        DataError: the folder holds no run, or one that has finished no phase; its data set is missing, or its
            `metrics.jsonl` damaged.
        CheckpointError: a checkpoint is damaged.
        ConfigError: the run's network is neither one of `MODELS` nor `trusted_model`.
        OutputError: the folder cannot be written.
    """
    if progress is None:
        with Progress() as own:
            return write_html_report(folder, trusted_model=trusted_model, device=device, progress=own)
    recipe, recipe_text = _read_recipe(folder)
    report, histograms = _examine(folder, recipe, model_builder(trusted_model), torch.device(device), progress)
    write_report(folder / JSON_NAME, report)
    write_text(folder / HTML_NAME, render(report, histograms, recipe_text))
    return report


def _read_recipe(folder: Path) -> tuple[Recipe, str]:
    path = folder / "recipe.json"
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} holds no run to report on: {path.name} cannot be read ({error}).") from error
    return recipe_from_dict(content, str(path)), text


def _examine(
    folder: Path, recipe: Recipe, build: Builder, device: torch.device, progress: Progress
) -> tuple[RunReport, list[Histograms]]:
    """Measure all figures of the report."""
    stage_names = [each.name for each in recipe.stages if _checkpoint(folder, each.name).is_file()]
    last = _last_network(folder, recipe)
    info, model = load_model(_checkpoint(folder, last), build)
    images = load_batches(info.data, "test", preprocessing=info.preprocessing, batch_size=_BATCH_SIZE)
    few = spread_images(images, ACTIVATION_IMAGES)
    task = progress.add_task("report", total=len(stage_names) * len(few) + len(images))
    epochs = read_epochs(folder)
    stages, histograms = [], []
    for name in stage_names:
        _, prepared = read_prepared(_checkpoint(folder, name), build, device)
        layers, weights, activations = layer_shares(prepared, few, info.preprocessing)
        stages.append(stage_report(folder, name, prepared, layers, epochs))
        histograms.append(_draw(weights, interval_activations(activations), input_quantizers(prepared)))
        progress.advance(task, len(few))
    confusions = find_confusions(model.to(device), images, info.preprocessing, lambda n: progress.advance(task, n))
    progress.remove_task(task)
    floating = _checkpoint(folder, "float")
    report = RunReport(
        schema=RunReport.SCHEMA,
        name=recipe.name,
        model=info.model_name,
        data=info.data,
        test_images=len(images),
        activation_images=len(few),
        float_accuracy=read_info(floating).metrics["accuracy"] if floating.is_file() else None,
        network=last,
        accuracy=top1_percent(sum(each.images for each in confusions if each.label == each.predicted), len(images)),
        class_names=info.class_names,
        stages=tuple(stages),
        epochs=epochs,
        confusions=confusions,
        versions=describe_versions(),
        distillation=_distillation(recipe),
    )
    return report, histograms


def _distillation(recipe: Recipe) -> Distillation | None:
    section = recipe.distillation
    if section is None:
        return None
    return Distillation(teacher=section.teacher, weight=section.weight, temperature=section.temperature)


def _checkpoint(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _last_network(folder: Path, recipe: Recipe) -> str:
    """Return the name of the last phase that has ended."""
    names = ["float", *(f"{stage.name}{suffix}" for stage in recipe.stages for suffix in ("", "_frozen"))]
    done = [name for name in names if _checkpoint(folder, name).is_file()]
    if not done:
        raise DataError(f"{folder} holds no finished phase to report on; go on with --resume.")
    return done[-1]


def _draw(
    weights: Sequence[QuantizedValues], activations: Sequence[QuantizedValues], sources: Mapping[str, str]
) -> Histograms:
    return Histograms(
        weights=tuple(_histogram(each, f"weights of {each.name}", each.name) for each in weights),
        activations=tuple(
            _histogram(each, f"activations into {readers}", f"into {readers}")
            for each in activations
            for readers in [", ".join(layer for layer, quantizer in sources.items() if quantizer == each.name)]
        ),
    )


def _histogram(values: QuantizedValues, about: str, title: str) -> Histogram:
    return Histogram(
        png=png(histogram_figure(values)),
        about=about,
        interval=f"{values.lower:.4g} to {values.upper:.4g}",
        caption=f"{title}, {values.bits} bits",
    )
