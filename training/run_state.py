"""What a run needs to go on in the middle of a phase: one safetensors file, `RUN/state.safetensors`.

    model.NAME                 parameters and buffers
    average.NAME               their moving average, where the recipe asks for one
    optimizer.I.P.KEY          what optimizer I keeps of its parameter P (momentum, moments, step)

The header says which phase, where in it, and what its epoch has summed up so far. Learning rates, order of the images,
augmentation and dropout are functions of that position (`data`, `loop`), so nothing else has to be kept. The file is
written whole or not at all: an interrupted write leaves the one before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from qil_deploy.checkpoint import load_tensors
from qil_deploy.errors import CheckpointError
from qil_deploy.files import write_bytes

STATE_NAME = "state.safetensors"
_SCHEMA = "1"


@dataclass(kw_only=True)
class Position:
    """Where a phase stands.

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
class Learner:
    """What training changes.

    Attributes:
        model: the network.
        optimizers: with references to its parameters.
        average: holds the moving average of the network's state; None without one.
    """

    model: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    average: AveragedModel | None = None


def save_state(folder: Path, phase: str, position: Position, learner: Learner) -> None:
    """Write the state of a phase, in place of the one before.

    Raises:
        OutputError: the folder cannot be written, or the disk is full; the earlier state is untouched.
    """
    tensors = {f"model.{name}": tensor for name, tensor in learner.model.state_dict().items()}
    if learner.average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in learner.average.state_dict().items()}
    for index, optimizer in enumerate(learner.optimizers):
        for parameter, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{parameter}.{key}": value for key, value in values.items()}
    kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    header = {"schema": _SCHEMA, "phase": phase, "position": json.dumps(asdict(position))}
    write_bytes(folder / STATE_NAME, save(kept, metadata=header))


def load_state(folder: Path, phase: str, learner: Learner) -> Position | None:
    """Restore the state of a phase, in place; None if the folder holds none of that phase.

    Raises:
        CheckpointError: the file is damaged, or does not fit the network.
    """
    path = folder / STATE_NAME
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header: Mapping[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no dict
        found, position = header["phase"], Position(**json.loads(header["position"]))
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"run state {path} is damaged ({error}); remove it to go on after the last finished phase."
        ) from error
    if found != phase:
        return None
    load_tensors(learner.model, _under(tensors, "model."), str(path))
    if learner.average is not None:
        load_tensors(learner.average, _under(tensors, "average."), str(path))
    for index, optimizer in enumerate(learner.optimizers):
        _load_optimizer(optimizer, _under(tensors, f"optimizer.{index}."))
    return position


def remove_state(folder: Path) -> None:
    """Remove the state: its phase is finished and has a checkpoint."""
    (folder / STATE_NAME).unlink(missing_ok=True)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.partition(".")
        state.setdefault(int(parameter), {})[key] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
