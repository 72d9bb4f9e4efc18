"""The state of a phase, from which a run resumes: one safetensors file, `RUN/state.safetensors`.

    model.NAME                 parameters and buffers
    average.NAME               their moving average, where the recipe asks for one
    optimizer.I.P.KEY          what optimizer I keeps of its parameter P (momentum, moments, step)
    oscillation.KEY            codes of the weights, how often they turn, which are frozen (`oscillation`)

The header says which phase, where in it, and what its epoch has summed up so far, and carries the digest of all this.
Learning rates, order of the images, augmentation and dropout are functions of that position (`data`, `fit`), so
nothing else has to be kept. The file is written whole or not at all: an interrupted write leaves the one before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from qil_deploy.checkpoint import (
    DamagedFileError,
    check_values,
    file_content,
    has_digest,
    load_tensors,
    read_contents,
    read_tensors,
    scalars_of,
)
from qil_deploy.errors import CheckpointError
from qil_deploy.files import write_bytes
from qil_deploy.network import require_finite
from qil_deploy.strict_json import parse_json
from qil_deploy.untrusted_text import excerpt

from .oscillation import Oscillation

STATE_NAME = "state.safetensors"
_SCHEMA = "2"
_LARGEST_COUNT, _LARGEST_SUM = 2**53, 1e300

# What an optimizer keeps of each parameter that it has moved.
_KEPT: dict[type[torch.optim.Optimizer], frozenset[str]] = {
    torch.optim.SGD: frozenset({"momentum_buffer"}),
    torch.optim.Adam: frozenset({"step", "exp_avg", "exp_avg_sq"}),
}


@dataclass(kw_only=True)
class Position:
    """Progress within a phase.

    Attributes:
        epoch, batch: the next batch.
        step: of the phase, the number of that batch.
        loss_sum, right: sums over the batches of this epoch so far: losses, and images classified rightly.
        best: best accuracy on the test set after an epoch so far, in percent; -1 before the first.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    right: int = 0
    best: float = -1.0


@dataclass(frozen=True, kw_only=True)
class Extent:
    """Length of a phase: epochs, batches per epoch, images per batch over all processes."""

    epochs: int
    batches: int
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Learner:
    """All state that training changes.

    Attributes:
        model: the network.
        optimizers: with references to its parameters.
        average: holds the moving average of the network's state; None without one.
        oscillation: watches the codes of its weights; None without.
    """

    model: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    average: AveragedModel | None = None
    oscillation: Oscillation | None = None


def save_state(folder: Path, phase: str, position: Position, learner: Learner) -> None:
    """Write the state of a phase; it replaces the previous one.

    Raises:
        OutputError: the folder cannot be written, or the disk is full; the earlier state is untouched.
    """
    tensors = {f"model.{name}": tensor for name, tensor in learner.model.state_dict().items()}
    if learner.average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in learner.average.state_dict().items()}
    for index, optimizer in enumerate(learner.optimizers):
        for parameter, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{parameter}.{key}": value for key, value in values.items()}
    if learner.oscillation is not None:
        tensors |= {f"oscillation.{name}": tensor for name, tensor in learner.oscillation.state_dict().items()}
    header = {"schema": _SCHEMA, "phase": phase, "position": json.dumps(asdict(position))}
    write_bytes(folder / STATE_NAME, file_content(tensors, header))


def load_state(folder: Path, phase: str, learner: Learner, extent: Extent | None = None) -> Position | None:
    """Restore the state of a phase, in place; None if the folder holds none of that phase.

    Args:
        folder: of the run.
        phase: its name.
        learner: a fresh one.
        extent: of the phase; None if unknown, and every position counts as one of it.

    Raises:
        CheckpointError: the file is damaged, or does not fit the network, its optimizers or the length of the phase.
    """
    path = folder / STATE_NAME
    if not path.exists():
        return None
    try:
        contents = read_contents(path)
        if not has_digest(contents) or contents.metadata.get("schema") != _SCHEMA:
            raise DamagedFileError(f"it has no digest, or is not of schema {_SCHEMA}, which this version writes")
        tensors = read_tensors(path)
        if contents.metadata["phase"] != phase:
            return None
        position = _read_position(contents.metadata["position"], extent)
        states = [
            _optimizer_state(optimizer, index, tensors, position) for index, optimizer in enumerate(learner.optimizers)
        ]
        if learner.oscillation is not None:
            learner.oscillation.load_state_dict(_under(tensors, "oscillation."))
    except (DamagedFileError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"run state {path} is damaged ({excerpt(str(error), 240)}); remove it to go on after the last finished "
            "phase."
        ) from error
    require_finite(tensors.items(), f"run state {path}", error=CheckpointError)
    rebuilt = scalars_of(learner.model)
    load_tensors(learner.model, _under(tensors, "model."), str(path))
    check_values(learner.model, rebuilt, f"run state {path}")
    if learner.average is not None:
        load_tensors(learner.average, _under(tensors, "average."), str(path))
    for optimizer, state in zip(learner.optimizers, states, strict=True):
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return position


def remove_state(folder: Path) -> None:
    """Remove the state: its phase is finished and has a checkpoint."""
    (folder / STATE_NAME).unlink(missing_ok=True)


def _read_position(text: str, extent: Extent | None) -> Position:
    """Read a position, and check that it lies within a phase of this length.

    Raises:
        ValueError: it is damaged, or lies outside.
    """
    entries = parse_json(text)
    if not isinstance(entries, dict) or entries.keys() != {field.name for field in fields(Position)}:
        raise ValueError("its position is not an object with the right entries")
    for name, value in entries.items():
        if name in ("loss_sum", "best"):
            if type(value) not in (int, float) or not abs(value) < _LARGEST_SUM:
                raise ValueError(f"{name} is {excerpt(repr(value), 40)}, no finite number")
        elif type(value) is not int or not 0 <= value < _LARGEST_COUNT:
            raise ValueError(f"{name} is {excerpt(repr(value), 40)}, no count")
    position = Position(**entries)
    if not -1.0 <= position.best <= 100.0:
        raise ValueError(f"its best accuracy is {position.best} %")
    if extent is not None:
        _check_extent(position, extent)
    return position


def _check_extent(position: Position, extent: Extent) -> None:
    in_epoch = position.epoch < extent.epochs and position.batch < extent.batches
    at_end = position.epoch == extent.epochs and position.batch == 0
    if not (in_epoch or at_end) or position.step != position.epoch * extent.batches + position.batch:
        raise ValueError(
            f"it stands at step {position.step}, batch {position.batch} of epoch {position.epoch}, and the phase has "
            f"{extent.epochs} epochs of {extent.batches} batches: has the data set changed?"
        )
    if position.right > position.batch * extent.batch_size:
        raise ValueError(f"{position.right} of {position.batch * extent.batch_size} images are right")


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _optimizer_state(
    optimizer: torch.optim.Optimizer, index: int, tensors: Mapping[str, Tensor], position: Position
) -> dict[int, dict[str, Any]]:
    """Return the state of an optimizer, by the number of the parameter.

    Raises:
        ValueError: it is not what an optimizer of its kind keeps of these parameters.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = {str(number): number for number in range(len(parameters))}
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in _under(tensors, f"optimizer.{index}.").items():
        digits, _, key = name.partition(".")
        if digits not in numbers:
            raise ValueError(f"optimizer {index} has no parameter {excerpt(digits, 20)}")
        shape = () if key == "step" else tuple(parameters[numbers[digits]].shape)
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            raise ValueError(
                f"'{excerpt(name, 60)}' of optimizer {index} has shape {list(tensor.shape)} and type {tensor.dtype}"
            )
        state.setdefault(numbers[digits], {})[key] = tensor
    kept = next((keys for kind, keys in _KEPT.items() if isinstance(optimizer, kind)), None)
    for number, values in state.items():
        if kept is not None and values.keys() != kept:
            raise ValueError(f"optimizer {index} keeps {', '.join(sorted(values))} of its parameter {number}")
    if position.step > 0 and parameters and not state:
        raise ValueError(f"it keeps nothing of optimizer {index}")
    return state
