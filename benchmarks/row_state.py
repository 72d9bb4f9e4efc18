"""What a network has reached after an epoch, kept in a folder, so that a command that was killed goes on from there.

    FOLDER/state.safetensors    network, optimizers and oscillating weights (`qil_deploy.training.run_state`)
    FOLDER/row.json             losses so far, and seconds

The second file is written first: where only one of them is of the last epoch, its last loss is left out.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from qil_deploy.files import write_text
from qil_deploy.training.oscillation import Oscillation
from qil_deploy.training.run_state import STATE_NAME, Position, load_state, save_state
from qil_deploy.training.run_state import Learner as TrainingState
from side_by_side import Learner

ROW = "row.json"


@dataclass(frozen=True, kw_only=True)
class Reached:
    """How far a row is.

    Attributes:
        losses: mean loss of every epoch, of all stages so far.
        seconds: of training so far.
        beside: networks trained at the same time, at most.
    """

    losses: tuple[float, ...] = ()
    seconds: float = 0.0
    beside: int = 0


def keep(folder: Path, stage: int, learner: Learner, reached: Reached, oscillation: Oscillation | None = None) -> None:
    """Write what a stage has reached at the end of an epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / ROW, json.dumps(asdict(reached)) + "\n")
    position = Position(epoch=learner.done, step=learner.done * learner.order.batches)
    save_state(folder, _phase(stage), position, _training_state(learner, oscillation))


def take_up(
    folder: Path, stage: int, earlier: int, learner: Learner, oscillation: Oscillation | None = None
) -> Reached | None:
    """Put a learner where an earlier start left it, in place; None if the folder holds nothing of this stage.

    Args:
        folder: of the row.
        stage: its number.
        earlier: epochs of the stages before.
        learner, oscillation: as the stage begins.

    Raises:
        CheckpointError: the state is damaged, or of another network.
    """
    position = load_state(folder, _phase(stage), _training_state(learner, oscillation))
    if position is None:
        return None
    learner.done = position.epoch
    learner.number.fill_(position.step)
    found = json.loads((folder / ROW).read_text())
    return Reached(**(found | {"losses": tuple(found["losses"][: earlier + position.epoch])}))


def holds_state(folder: Path) -> bool:
    """Whether an earlier start left something."""
    return (folder / STATE_NAME).exists()


def forget(folder: Path) -> None:
    """Remove what was kept: the row is finished."""
    shutil.rmtree(folder, ignore_errors=True)


def _phase(stage: int) -> str:
    return f"stage {stage}"


def _training_state(learner: Learner, oscillation: Oscillation | None) -> TrainingState:
    return TrainingState(model=learner.model, optimizers=learner.optimizers, oscillation=oscillation)
