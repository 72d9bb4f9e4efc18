"""Record a phase in the run's folder: curves, a line per epoch, the best network, the state to resume from."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from torch import nn

from qil_deploy.checkpoint import CheckpointInfo, save_checkpoint

from .metrics_file import append_epoch, drop_epochs
from .pictures import Curves
from .run_folder import BEST_NAME
from .run_state import Learner, Position, save_state

if TYPE_CHECKING:
    from .fit import EpochMetrics, StepMetrics
    from .run import Run

CURVE_STEPS, INTERVAL_STEPS = 10, 50


class PhaseRecord:
    """Evaluates and records one phase of a run. It is called in every process; the main process writes.

    Args:
        run: the run.
        name: of the phase.
        learner: what is trained.
        info: what the checkpoint of the best epoch says about itself.
        position: where the phase begins, or resumes.
        teacher: that the phase learns from, as the recipe names it; None without one.
    """

    def __init__(
        self,
        run: Run,
        name: str,
        learner: Learner,
        info: CheckpointInfo,
        position: Position,
        *,
        teacher: str | None = None,
    ) -> None:
        self.run, self.name, self.learner, self.info = run, name, learner, info
        self.taught = {} if teacher is None else {"teacher": teacher}
        self.save_seconds = 60.0 * run.settings.save_minutes
        self.curves: Curves | None = None
        self.last_step = 0
        if run.accelerator.is_main_process:
            drop_epochs(run.folder, name, position.epoch)
            self.curves = Curves(run.folder / "curves" / name, position.step)

    def __enter__(self) -> PhaseRecord:
        """Return itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """End the phase."""
        if self.curves is not None:
            self.curves.close()

    def evaluate(self, model: nn.Module) -> float:
        """Return the accuracy of a model on the test set, in percent."""
        return self.run.accuracy(model)

    def on_step(self, metrics: StepMetrics) -> None:
        """Add a step to the curves."""
        self.last_step = metrics.step
        if self.curves is None:
            return
        if metrics.step % CURVE_STEPS == 0:
            self.curves.step(metrics.step, {"loss": metrics.loss, "rate": metrics.rate})
        if metrics.step % INTERVAL_STEPS == 0:
            self.curves.intervals(metrics.step, self.learner.model)

    def on_epoch(self, metrics: EpochMetrics, position: Position) -> None:
        """Write the line of an epoch, and the network if it is the best so far."""
        if self.curves is None:
            return
        figures = {name: value for name, value in asdict(metrics).items() if value is not None}
        self.curves.epoch(self.last_step, {name: figures[name] for name in figures if name not in ("epoch", "seconds")})
        append_epoch(self.run.folder, {"phase": self.name, **figures, **self.taught})
        self.run.progress.console.print(
            f"{self.name} epoch {metrics.epoch}: loss {metrics.loss:.4f}, train {metrics.train_accuracy:.2f} %, "
            f"test {metrics.test_accuracy:.2f} %, {metrics.seconds:.0f} s{_oscillation_words(metrics)}"
        )
        if metrics.test_accuracy > position.best:
            info = self.info.model_copy(update={"metrics": {"accuracy": metrics.test_accuracy}})
            save_checkpoint(self.run.folder / BEST_NAME / f"{self.name}.safetensors", info, self.learner.model)

    def save(self, position: Position) -> None:
        """Save a position from which to resume."""
        if self.curves is not None:
            self.curves.flush()  # before the state: a later start draws only what comes after it
            save_state(self.run.folder, self.name, position, self.learner)


def _oscillation_words(metrics: EpochMetrics) -> str:
    if metrics.oscillating_weights is None or metrics.frozen_weights is None:
        return ""
    return f"; {metrics.oscillating_weights:.2%} of weights oscillate, {metrics.frozen_weights:.2%} are frozen"
