"""A whole training run: float network, then the quantized stages of a recipe, each saved as it ends.

    RUN/float.safetensors          the float network
    RUN/w4a4.safetensors           intervals learned at 4/4 bits, fake quantization
    RUN/w4a4_frozen.safetensors    the same, frozen and trained on with the runtime's arithmetic; to be exported
    RUN/best/                      the same names, as they were after their best epoch on the test set
    RUN/state.safetensors          the middle of the present phase (`run_state`)
    RUN/metrics.jsonl              one line per epoch
    RUN/curves/                    TensorBoard: loss, accuracy, every interval
    RUN/recipe.json                the recipe
    RUN/.lock                      who writes here, as long as somebody does

Before anything is written, every phase is tried on a few images (`rehearsal`). `resume` skips the phases whose
checkpoint is there, and goes on in the middle of the one whose state is. In several processes (`accelerate launch`,
`torchrun`) each takes its rows of every batch; the first one writes.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import fx, nn

from qil_deploy.accuracy import top1_percent
from qil_deploy.checkpoint import load_model, load_tensors, read_checkpoint
from qil_deploy.integers import freeze
from qil_deploy.network import calibrate, change_bits
from qil_deploy.terminal import Progress

from .data import to_input
from .models import load_initial_weights
from .recipe import Recipe, StageSection
from .rehearsal import rehearse
from .run import Run, Settings
from .run_folder import check_folder, claimed_folder

CALIBRATION_BATCHES = 8


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """Where one stage's checkpoints are and what they reach on the test set, in percent.

    `frozen`, `frozen_at_once` and `frozen_accuracy` are None for a stage without frozen epochs.
    """

    name: str
    checkpoint: Path
    accuracy: float
    frozen: Path | None = None
    frozen_at_once: float | None = None
    frozen_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Results of a run: the float network first, then the stages in order."""

    float_result: StageResult
    stages: tuple[StageResult, ...]


def train(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    settings: Settings = Settings(),  # noqa: B008 - frozen
    progress: Progress | None = None,
) -> RunResult:
    """Carry out a recipe.

    Args:
        recipe: what to train.
        folder: where checkpoints and metrics go; created if missing.
        resume: continue a run that was interrupted, where it last was kept.
        settings: precision, and how often the run is kept.
        progress: a started progress display; one is made if None.

    Raises:
        ConfigError: an unknown network, an override that matches no layer, a folder that holds a run (and `resume` is
            false) or a run of another recipe.
        TrainingError: training diverged, or the network cannot be trained at all (`rehearsal`).
        CheckpointError: what is to be resumed is damaged, or not of this run.
        DataError: the data set is unknown or missing.
        UnsupportedModelError: the network cannot be quantized.
        OutputError: the folder cannot be written, or another process writes there.
    """
    accelerator = Accelerator(mixed_precision=settings.mixed_precision)
    if progress is None:
        with Progress(disable=not accelerator.is_main_process) as own:
            return train(recipe, folder, resume=resume, settings=settings, progress=own)
    return carry_out(Run(recipe, folder, progress, accelerator, resume=resume, settings=settings))


def carry_out(run: Run) -> RunResult:
    """Train all phases of a run; arguments and errors as in `train`."""
    check_folder(run.recipe, run.folder, resume=run.resume)
    rehearse(run)
    writes = run.accelerator.is_main_process
    with claimed_folder(run.recipe, run.folder, resume=run.resume) if writes else contextlib.nullcontext():
        run.accelerator.wait_for_everyone()
        float_result = _float_phase(run)
        stages = []
        previous = float_result
        for index, stage in enumerate(run.recipe.stages):
            result = _quantized_phase(run, stage, index, float_result if stage.from_float else previous)
            if stage.frozen_epochs:
                result = _frozen_phase(run, stage, index, result)
            stages.append(result)
            previous = result
        return RunResult(float_result=float_result, stages=tuple(stages))


def _float_phase(run: Run) -> StageResult:
    if not run.done("float"):
        if run.data.teacher is not None:
            model = run.data.teacher.model.to(run.accelerator.device)
            accuracy = run.accuracy(model)
        else:
            model = run.build()
            _start_from_weights(run, model)
            accuracy = run.fit(model, run.recipe.float_training, "float", 0, run.info("float", None))
        run.save("float", run.info("float", None, accuracy=accuracy), model)
    return StageResult(
        name="float", checkpoint=run.path("float"), accuracy=run.metrics("float", "float", None)["accuracy"]
    )


def _start_from_weights(run: Run, model: nn.Module) -> None:
    """Load the weights that the recipe starts from, if it names any."""
    section = run.recipe.model
    if section.weights is None:
        return
    tell = run.progress.console.print
    fresh = load_initial_weights(model, section.weights, name=section.name, reset_head=section.reset_head, tell=tell)
    if fresh:
        tell(f"Started anew, for {section.weights} has another head: {', '.join(fresh)}.")


def _prepared(run: Run, stage: StageSection) -> fx.GraphModule:
    example = to_input(torch.zeros(1, *run.preprocessing.shape, dtype=torch.uint8), run.preprocessing)
    return run.prepare(run.build(), stage, example)


def _quantized_phase(run: Run, stage: StageSection, index: int, previous: StageResult) -> StageResult:
    """Train one stage, from the float network (intervals then start from data) or from the stage before."""
    if not run.done(stage.name):
        model = _starting_point(run, stage, index, previous)
        metrics = {} if run.data.teacher is None else {"accuracy_at_start": run.accuracy(model)}
        metrics["accuracy"] = run.fit(model, stage, stage.name, 200 + index, run.info("quantized", stage))
        run.save(stage.name, run.info("quantized", stage, **metrics), model)
    accuracy = run.metrics(stage.name, "quantized", stage)["accuracy"]
    return StageResult(name=stage.name, checkpoint=run.path(stage.name), accuracy=accuracy)


def _starting_point(run: Run, stage: StageSection, index: int, previous: StageResult) -> fx.GraphModule:
    _, tensors = read_checkpoint(previous.checkpoint)
    if previous.name != "float":
        model = _prepared(run, stage)
        if model.state_dict().keys() != tensors.keys():  # other overrides: tensors have other readers, and intervals
            return _with_other_graph(run, stage, index, previous)
        load_tensors(model, tensors, str(previous.checkpoint))
        return model
    float_model = run.build()
    load_tensors(float_model, tensors, str(previous.checkpoint))
    batches = run.whole_batches(CALIBRATION_BATCHES, stage.batch_size, 100 + index)
    model = run.prepare(float_model.to(run.accelerator.device), stage, batches[0])
    calibrate(model, batches, float_model=None if run.data.teacher is None else float_model)
    return model


def _with_other_graph(run: Run, stage: StageSection, index: int, previous: StageResult) -> fx.GraphModule:
    """Return the network of a stage before with the quantizers of another, and whatever intervals both have."""
    _, prepared = load_model(previous.checkpoint, run.builder)
    if not isinstance(prepared, fx.GraphModule):
        raise TypeError(f"{previous.checkpoint} holds no prepared model")
    return change_bits(
        prepared.to(run.accelerator.device),
        run.build().to(run.accelerator.device),
        run.recipe.quant_config(stage),
        run.whole_batches(CALIBRATION_BATCHES, stage.batch_size, 100 + index),
        input_grid=run.preprocessing,
        carry_over=True,
    )


def _frozen_phase(run: Run, stage: StageSection, index: int, result: StageResult) -> StageResult:
    """Freeze a trained stage and train on with the runtime's arithmetic; the unfrozen checkpoint stays."""
    name = f"{stage.name}_frozen"
    if not run.done(name):
        _, prepared = load_model(result.checkpoint, run.builder)
        if not isinstance(prepared, fx.GraphModule):
            raise TypeError(f"{result.checkpoint} holds no prepared model")
        model = freeze(prepared)
        before, at_once = run.data.predictions(prepared), run.data.predictions(model)
        accuracy = run.fit(model, stage.frozen_section(), name, 300 + index, run.info("frozen", stage))
        info = run.info(
            "frozen",
            stage,
            accuracy=accuracy,
            accuracy_before_freezing=result.accuracy,
            accuracy_frozen_at_once=top1_percent(int((at_once == run.data.test.labels).sum()), len(run.data.test)),
            test_images=float(len(run.data.test)),
            changed_predictions_at_once=float((before != at_once).sum()),
            changed_predictions=float((before != run.data.predictions(model)).sum()),
        )
        run.save(name, info, model)
    metrics = run.metrics(name, "frozen", stage)
    return replace(
        result,
        frozen=run.path(name),
        frozen_at_once=metrics["accuracy_frozen_at_once"],
        frozen_accuracy=metrics["accuracy"],
    )
