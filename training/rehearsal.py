"""Try one step of every phase on a few real images before the first epoch, to find untrainable ones at once.

Each phase is tried as it will run: the float network, every stage with its quantizers, and frozen where it has frozen
epochs. The networks are built for this and thrown away, and random states are restored, so that a run ends with the
same bits as one without a rehearsal.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from qil_deploy.errors import ConfigError, DataError, QilDeployError, TrainingError
from qil_deploy.integers import freeze
from qil_deploy.network import PreparedModel, calibrate, measure_network, nothing_left_behind
from qil_deploy.untrusted_text import excerpt

from .data import check_batch_size
from .divergence import describe_divergence
from .fit import loss_of, optimizers_of, training_mode
from .memory import require_memory
from .models import describe_error, memory_format_for
from .oscillation import oscillation_of
from .recipe_sections import CALIBRATION_BATCHES, OptimizerSection, StageSection
from .run import Run
from .run_state import Position

IMAGES = 8
_BYTES_TRAINED = 12  # of a parameter: its value, gradient and momentum


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """One phase to try: its name, initial network, optimization, and the images."""

    phase: str
    model: nn.Module
    section: OptimizerSection
    images: Tensor
    labels: Tensor


def rehearse(run: Run) -> None:
    """Try every phase of a run that is not finished yet.

    Raises:
        TrainingError: the network does not run on the images, does not return one finite logit per class, or nothing in
            it learns.
        DataError: labels outside the classes, or images from which intervals cannot be set.
        ConfigError: a batch larger than the training set, one that the processes cannot share evenly, a network that
            this machine's memory cannot hold, oscillation of weights that it does not have, or `calibration_batches` of
            a stage that calibrates nothing.
        CheckpointError: the weights to start from cannot be read, or do not fit.
        UnsupportedModelError: the network cannot be quantized, or a stage not be frozen.
    """
    _check_labels(run)
    stages = [stage for stage in run.recipe.stages if not _is_done(run, stage)]
    sections: list[OptimizerSection] = list(stages)
    if run.data.teacher is None and not run.done("float"):
        sections.insert(0, run.recipe.float_training)
    for section in sections:
        check_batch_size(section.batch_size, len(run.data.train), run.share)
    if sections:
        with _random_state_restored():
            _check_memory(run)
            _try_all(run, sections)


def _try_all(run: Run, sections: Sequence[OptimizerSection]) -> None:
    images, labels = _first_images(run, sections)
    for section in sections:
        few = slice(section.batch_size // run.share.of)
        trial = _Trial(phase="float", model=_network(run), section=section, images=images[few], labels=labels[few])
        if isinstance(section, StageSection):
            _try_stage(run, trial, section)
            continue
        run.load_initial_weights(trial.model, tell=False)
        _try(run, trial)


def _try_stage(run: Run, trial: _Trial, stage: StageSection) -> None:
    """Try a stage, quantized and then frozen; `trial.model` is the float network from which it starts."""
    model = run.prepare(trial.model, stage, trial.images[:1])
    _require_calibration(run, stage, model, trial.images[:1])
    calibrate(model, [trial.images], float_model=None if run.data.teacher is None else trial.model)
    quantized = replace(trial, phase=stage.name, model=model)
    if not run.done(stage.name):
        _try(run, quantized)
    if stage.frozen_epochs:
        _try(run, replace(quantized, phase=f"{stage.name}_frozen", model=freeze(model), section=stage.frozen_section()))


def _require_calibration(run: Run, stage: StageSection, model: PreparedModel, image: Tensor) -> None:
    """Refuse `calibration_batches` of a stage that takes all intervals from the stage before, as `train` does."""
    index = run.recipe.stages.index(stage)
    if stage.calibration_batches == CALIBRATION_BATCHES or stage.from_float or index == 0:
        return
    before = run.recipe.stages[index - 1]
    if run.prepare(_network(run), before, image).state_dict().keys() == model.state_dict().keys():
        raise ConfigError(
            f"{stage.name}: calibration_batches is {stage.calibration_batches}, but the stage takes every interval "
            f"over from {before.name}, the stage before, and calibrates nothing; leave the key out, or set "
            "from_float = true."
        )


def _is_done(run: Run, stage: StageSection) -> bool:
    return run.done(stage.name) and (not stage.frozen_epochs or run.done(f"{stage.name}_frozen"))


def _check_labels(run: Run) -> None:
    """Check that every label is one of the classes, of training and of test images."""
    classes = len(run.data.class_names)
    for split, labels in (("training", run.data.train.labels), ("test", run.data.test.labels)):
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise DataError(
                f"the labels of the {split} images go from {int(labels.min())} to {int(labels.max())}, but there are "
                f"{classes} classes, 0 to {classes - 1}."
            )


def _check_memory(run: Run) -> None:
    """Refuse a network that does not fit in this machine's memory with its gradients and optimizer state."""
    name = run.recipe.model.name
    size = measure_network(lambda: run.builder(name, run.model_arguments), run.preprocessing.shape)
    if size is not None:
        require_memory(
            size.values * _BYTES_TRAINED,
            f"training {excerpt(name, 60)} with {excerpt(run.model_arguments)}",
            "choose a narrower network",
        )


def _network(run: Run) -> nn.Module:
    """Return a disposable copy of the run's float network."""
    network = run.build() if run.data.teacher is None else copy.deepcopy(run.data.teacher.model)
    return network.to(run.accelerator.device)


def _first_images(run: Run, sections: Sequence[OptimizerSection]) -> tuple[Tensor, Tensor]:
    """Return a few training images of this process, as phases read them, and their labels."""
    largest = max(section.batch_size for section in sections) // run.share.of
    count = min(IMAGES, largest)
    batches = replace(run.data, workers=0).batches(count * run.share.of, run.recipe.seed, run.share)
    images, labels = next(iter(batches.epoch(0)))
    return images.to(run.accelerator.device), labels.to(run.accelerator.device)


@contextlib.contextmanager
def _random_state_restored() -> Iterator[None]:
    """Restore every generator of random numbers afterwards; a user's network may draw from any of them."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - a user's network may use it
    try:
        with nothing_left_behind():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002 - as above


def _try(run: Run, trial: _Trial) -> None:
    """Do one step without the update: forward, backward, and forward in evaluation mode."""
    for name, parameter in trial.model.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            found = str(parameter.dtype).removeprefix("torch.")
            raise TrainingError(
                f"{trial.phase}: parameter {name!r} of the network is {found}; return it as network.float(); "
                "--mixed-precision selects computation in half precision."
            )
    if trial.section.epochs > 0:
        if not any(parameter.requires_grad for parameter in trial.model.parameters()):
            raise TrainingError(
                f"{trial.phase}: every parameter of the network is frozen (requires_grad is false), so nothing would "
                "be trained; train at least its head, or set epochs to 0, which takes the network as it is."
            )
        optimizers = optimizers_of(run, trial.model, trial.section)
        oscillation_of(trial.model, trial.section)
        training_mode(trial.model, norms_stay=run.recipe.quantizer_only is not None)
        _step(
            run,
            trial,
            [parameter for each in optimizers for group in each.param_groups for parameter in group["params"]],
        )
    trial.model.eval()
    with torch.no_grad():
        _logits(run, trial, "evaluation")


def _step(run: Run, trial: _Trial, trained: Sequence[nn.Parameter]) -> None:
    logits = _logits(run, trial, "training")
    loss = loss_of(run, trial.section)(logits, trial.images, trial.labels, Position())
    if not bool(loss.isfinite()):
        raise TrainingError(
            f"{trial.phase}: the loss of the first {_count(trial.images)} is {float(loss.detach())} before any "
            f"training: {describe_divergence(trial.model, trial.images)}."
        )
    if not loss.requires_grad:
        raise TrainingError(
            f"{trial.phase}: the logits depend on no parameter that is trained; look for detach() or no_grad() in "
            "forward, and for parameters that it does not use."
        )
    try:
        loss.backward()
    except Exception as error:  # any code of the user's may run here
        raise TrainingError(f"{trial.phase}: gradients cannot be computed: {describe_error(error)}.") from error
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    if not gradients:
        raise TrainingError(
            f"{trial.phase}: no gradient reaches any of the {len(trained)} parameters that are to be trained; look for "
            "detach() or no_grad() in forward."
        )
    if not all(bool(gradient.isfinite().all()) for gradient in gradients):
        raise TrainingError(
            f"{trial.phase}: the loss of the first {_count(trial.images)} is finite, but its gradient is not; look "
            "for roots, quotients and logarithms of zero in forward."
        )


def _logits(run: Run, trial: _Trial, mode: str) -> Tensor:
    """Run the network in `training` or `evaluation`; check its output."""
    images, phase = trial.images, f"{trial.phase}, in {mode}"
    try:
        with run.accelerator.autocast():
            logits = trial.model(images.clone(memory_format=memory_format_for(trial.model)))
    except QilDeployError:
        raise
    except Exception as error:  # any code of the user's may run here
        hint = "; with one image per batch and process, BatchNorm may see single values: raise batch_size"
        raise TrainingError(
            f"{phase}: the network fails on {_count(images)} of shape {list(images.shape[1:])}: "
            f"{describe_error(error)}{hint if len(images) == 1 else ''}."
        ) from error
    if not isinstance(logits, Tensor):
        raise TrainingError(
            f"{phase}: the network returns a {type(logits).__name__}; one tensor of logits is needed, so leave out "
            "auxiliary outputs."
        )
    wanted = [len(images), len(run.data.class_names)]
    if list(logits.shape) != wanted or not logits.is_floating_point():
        kind = str(logits.dtype).removeprefix("torch.")
        raise TrainingError(
            f"{phase}: the network returns {kind} of shape {list(logits.shape)} for "
            f"{_count(images)}; with the {wanted[1]} classes of the data set it has to return floats of shape {wanted} "
            "(a function of yours gets their number as num_classes)."
        )
    return logits


def _count(images: Tensor) -> str:
    return f"{len(images)} images" if len(images) > 1 else "one image"
