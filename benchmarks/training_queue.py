"""Train the rows of `equal_epochs`, several at a time, and evaluate one while a GPU trains the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from row_state import forget
from side_by_side import run_epoch
from training_bench import Bench, Teacher
from training_rows import Job, Result, Variant


@dataclass(kw_only=True)
class Queue:
    """Rows that wait, train, or are ready for evaluation.

    Attributes:
        bench, teachers: shared parts from which rows are built.
        out: folder of the table.
        waiting: rows and seeds that have not started.
        width: number of rows that train at a time.
        deadline: time by `time.monotonic`; a row that would end later is not started.
        keep: path for the checkpoint of a row, if any.
        done: called with each result.
        say: called with a line about each epoch.
        active, ready, ended: rows in training, rows that start with the next epoch, rows at the end of a stage.
    """

    bench: Bench
    teachers: dict[int, Teacher]
    out: Path
    waiting: list[tuple[Variant, int]]
    width: int
    deadline: float
    keep: Callable[[Variant, int], Path | None]
    done: Callable[[Result], None]
    say: Callable[[str], None]
    active: list[Job] = field(default_factory=list)
    ready: list[Job] = field(default_factory=list)
    ended: list[Job] = field(default_factory=list)

    def train(self) -> None:
        """Train every row; while a CUDA device trains, evaluate and prepare others."""
        epoch_seconds = 0.0
        with ThreadPoolExecutor(1) as launcher:
            while self.waiting or self.active or self.ended or self.ready:
                began = time.monotonic()
                self.active += self.ready
                self.ready = []
                if self.active and self.bench.device.type == "cuda":
                    training = launcher.submit(run_epoch, [job.learner for job in self.active])
                    while not training.done() and self._work(epoch_seconds):
                        pass
                    training.result()
                else:
                    run_epoch([job.learner for job in self.active])
                    self._work(epoch_seconds)
                epoch_seconds = self._end_epoch(began)

    def _end_epoch(self, began: float) -> float:
        """Wait for the epoch and find the rows whose stage ends; return the duration of the epoch."""
        for job in self.active:
            job.end_epoch(beside=len(self.active) - 1)
            losses = job.reached.losses
            self.say(f"{job.label}: loss {losses[-1]:.3f} in epoch {len(losses)}")
        self.ended += [job for job in self.active if job.at_end_of_stage]
        self.active = [job for job in self.active if not job.at_end_of_stage]
        return time.monotonic() - began

    def _work(self, epoch_seconds: float) -> bool:
        """Do one task other than training; return whether there was one."""
        if self.ended:
            job = self.ended.pop(0)
            if job.next_stage():
                self.ready.append(job)
            else:
                self.done(job.result(self.keep(job.variant, job.seed)))
                forget(job.folder)
            return True
        if not self.waiting or len(self.active) + len(self.ready) >= self.width:
            return False
        if time.monotonic() + (self.bench.epochs + 1) * epoch_seconds > self.deadline:
            self.waiting.clear()
            return False
        variant, seed = self.waiting.pop(0)
        job = Job(variant, seed, self.bench, self.teachers[seed], self.out)
        job.learner.record()
        (self.ended if job.at_end_of_stage else self.ready).append(job)
        return True
