"""Carry out a recipe: the float network, then its quantized stages in order, each saved when finished.

    RUN/float.safetensors          the float network
    RUN/w4a4.safetensors           intervals learned at 4/4 bits, fake quantization
    RUN/w4a4_frozen.safetensors    the same, frozen and trained on with the runtime's arithmetic; to be exported
    RUN/best/                      the same names, as they were after their best epoch on the test set
    RUN/state.safetensors          the middle of the present phase (`run_state`)
    RUN/metrics.jsonl              one line per epoch
    RUN/curves/                    TensorBoard: loss, accuracy, every interval
    RUN/recipe.json                the recipe
    RUN/.lock                      which process is writing here

Before anything is written, every phase is tried on a few images (`rehearsal`). `resume` skips the phases whose
checkpoint is there, and resumes the one whose state is. In several processes (`accelerate launch`,
`torchrun`) each takes its rows of every batch; the first one writes.
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import Accelerator

from qil_deploy.accuracy import top1_percent
from qil_deploy.checkpoint import example_input, load_model, load_tensors, read_checkpoint
from qil_deploy.integers import freeze
from qil_deploy.network import PreparedModel, calibrate, change_bits
from qil_deploy.terminal import Progress

from .fit import fit
from .pictures import interval_starts
from .recipe import Recipe
from .recipe_sections import StageSection
from .rehearsal import rehearse
from .run import Run, Settings
from .run_folder import check_folder, claimed_folder

# Numbers of phases, from which their seeds follow; the index of the stage is added.
FLOAT, CALIBRATION, QUANTIZED, FROZEN = 0, 100, 200, 300


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """Checkpoints of one stage, and their accuracies on the test set in percent.

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
        resume: continue an interrupted run from where it was last saved.
        settings: precision, and how often the run is saved.
        progress: a started progress display; one is made if None.

    Raises:
        ConfigError: an unknown network, an override that matches no layer, a folder that holds a run (and `resume` is
            false) or a run of another recipe.
        TrainingError: training diverged, or the network cannot be trained (`rehearsal`).
        CheckpointError: the state to resume is damaged, or not of this run.
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
    _tell_finished(run)
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


def _tell_finished(run: Run) -> None:
    """Print which phases an earlier start has finished."""
    stages = ((stage.name, *([f"{stage.name}_frozen"] if stage.frozen_epochs else [])) for stage in run.recipe.stages)
    finished = [name for name in ("float", *(name for names in stages for name in names)) if run.done(name)]
    if finished:
        run.progress.console.print(f"Finished before: {', '.join(finished)}.")


def _float_phase(run: Run) -> StageResult:
    """Train the float network, or take the one to be quantized."""
    if not run.done("float"):
        if run.data.teacher is not None:
            model = run.data.teacher.model.to(run.accelerator.device)
            accuracy = run.accuracy(model)
        else:
            model = run.build()
            run.load_initial_weights(model, tell=True)
            accuracy = fit(run, model, run.recipe.float_training, "float", FLOAT, run.info("float", None))
        run.save("float", run.info("float", None, accuracy=accuracy), model)
    accuracy = run.metrics("float", "float", None)["accuracy"]
    return StageResult(name="float", checkpoint=run.path("float"), accuracy=accuracy)


def _quantized_phase(run: Run, stage: StageSection, index: int, previous: StageResult) -> StageResult:
    """Train one stage, from the float network (intervals then start from data) or from the stage before."""
    if not run.done(stage.name):
        model = _starting_point(run, stage, index, previous)
        metrics = interval_starts(model)
        if run.data.teacher is not None:
            metrics["accuracy_at_start"] = run.accuracy(model)
        metrics["accuracy"] = fit(run, model, stage, stage.name, QUANTIZED + index, run.info("quantized", stage))
        run.save(stage.name, run.info("quantized", stage, **metrics), model)
    accuracy = run.metrics(stage.name, "quantized", stage)["accuracy"]
    return StageResult(name=stage.name, checkpoint=run.path(stage.name), accuracy=accuracy)


def _starting_point(run: Run, stage: StageSection, index: int, previous: StageResult) -> PreparedModel:
    """Return the prepared network from which a stage starts."""
    _, tensors = read_checkpoint(previous.checkpoint)
    if previous.name == "float":
        network = run.build()
        load_tensors(network, tensors, str(previous.checkpoint))
        batches = run.whole_batches(stage.calibration_batches, stage.batch_size, CALIBRATION + index)
        model = run.prepare(network.to(run.accelerator.device), stage, batches[0])
        section = run.recipe.quantizer_only
        calibrate(
            model,
            batches,
            float_model=None if run.data.teacher is None else network,
            rounding="nearest" if section is None else section.rounding,
        )
        return model
    model = run.prepare(run.build(), stage, example_input(run.preprocessing))
    if model.state_dict().keys() == tensors.keys():
        load_tensors(model, tensors, str(previous.checkpoint))
        return model
    # With other overrides, tensors have other readers, and intervals.
    network = run.build() if run.data.teacher is None else copy.deepcopy(run.data.teacher.model)
    return change_bits(
        _prepared_model(run, previous.checkpoint).to(run.accelerator.device),
        network.to(run.accelerator.device),
        run.recipe.quant_config(stage),
        run.whole_batches(stage.calibration_batches, stage.batch_size, CALIBRATION + index),
        input_grid=run.preprocessing,
        carry_over=True,
    )


def _frozen_phase(run: Run, stage: StageSection, index: int, result: StageResult) -> StageResult:
    """Freeze a trained stage and continue training with the runtime's arithmetic; the unfrozen checkpoint stays."""
    name = f"{stage.name}_frozen"
    if not run.done(name):
        prepared = _prepared_model(run, result.checkpoint)
        model = freeze(prepared)
        before, at_once = run.data.predictions(prepared), run.data.predictions(model)
        accuracy = fit(run, model, stage.frozen_section(), name, FROZEN + index, run.info("frozen", stage))
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


def _prepared_model(run: Run, checkpoint: Path) -> PreparedModel:
    """Read the prepared model of a finished stage."""
    _, model = load_model(checkpoint, run.builder)
    if not isinstance(model, PreparedModel):
        raise TypeError(f"{checkpoint} holds no prepared model")
    return model
