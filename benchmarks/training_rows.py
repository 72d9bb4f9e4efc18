"""Rows of `equal_epochs`: a way to train, the networks that it trains from each float network, and their results."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from peers import use_brevitas_layers
from qil_deploy.checkpoint import save_checkpoint
from qil_deploy.config import QuantConfig
from qil_deploy.errors import ConfigError
from qil_deploy.integers import freeze
from qil_deploy.network import PreparedModel, calibrate, prepare
from qil_deploy.training import distillation_loss
from qil_deploy.training.optimizers import make_optimizers
from qil_deploy.training.oscillation import Control, Oscillation
from qil_deploy.training.recipe_sections import (
    CALIBRATION_BATCHES,
    INTERVAL_LEARNING_RATE,
    OSCILLATION_MOMENTUM,
    OSCILLATION_THRESHOLD,
    OptimizerSection,
    StageSection,
)
from row_state import Reached, holds_state, keep, take_up
from side_by_side import Learner, Loss
from training_bench import Bench, Teacher, label_loss, unfinished_folder

BREVITAS = "brevitas"
COMPARED_LOGITS = 500  # images whose logits a frozen network computes both on the device and on the processor


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A row of the table.

    Attributes:
        name: name of the way to train.
        bits: bit widths of the stages in turn, for weights and activations alike; empty: float, trained further.
        shares: shares of the epochs, one per stage.
        method: `qil`, `lsq`, or `brevitas`: its layers with their own learned scales, which cannot be frozen here.
        rate: learning rate of the weights.
        decay: weight decay.
        temperature: temperature of distillation from the float network of the seed; None: no distillation.
        scaling: scaling of the gradient of the rounding (`QuantConfig.gradient_scaling`).
        returning: whether weights outside their interval have a gradient (`QuantConfig.returning_weights`).
        oscillation: treatment of oscillating weights; None neither treats nor counts them.
        oscillation_momentum, oscillation_threshold: arguments of `Oscillation`.
        gamma: whether the exponent of weight transformers is learned.
        interval_rate: learning rate of intervals; with 0 they stay as calibrated.
    """

    name: str
    bits: tuple[int, ...] = ()
    shares: tuple[float, ...] = (1.0,)
    method: str = "qil"
    rate: float = 0.05
    decay: float = 1e-4
    temperature: float | None = None
    scaling: float = 0.0
    returning: bool = False
    oscillation: Control | None = None
    oscillation_momentum: float = OSCILLATION_MOMENTUM
    oscillation_threshold: tuple[float, float] = OSCILLATION_THRESHOLD
    gamma: bool = False
    interval_rate: float = INTERVAL_LEARNING_RATE

    @property
    def width(self) -> str:
        """Bit widths of the last stage, for example `w4a4`, or `float`."""
        return f"w{self.bits[-1]}a{self.bits[-1]}" if self.bits else "float"

    def key(self, seed: int) -> tuple[str, str, str, int]:
        """Return the key of a seed's result: way, method (empty for float), width, seed."""
        return (self.name, self.method if self.bits else "", self.width, seed)


@dataclass(frozen=True, kw_only=True)
class Result:
    """Result of one row and seed; accuracies on all test images in percent, after the last epoch.

    Attributes:
        way, method, width: key of the row.
        seed: seed of the float network and the batches.
        epochs: epochs after the float network.
        accuracy: accuracy with fake quantization, or of the float network.
        frozen: accuracy of the frozen network; None for float.
        differing_logits: logits of `COMPARED_LOGITS` images that differ between device and processor; None for float.
        losses: mean loss of every epoch.
        seconds: training time, next to `beside` others.
        beside: number of networks trained at the same time.
        oscillating, held: shares of the weights, in [0, 1], that oscillate and that are frozen at their code after the
            last step; None if they were not counted.
    """

    way: str
    method: str
    width: str
    seed: int
    epochs: int
    accuracy: float
    frozen: float | None
    differing_logits: int | None
    losses: tuple[float, ...]
    seconds: float
    beside: int
    oscillating: float | None = None
    held: float | None = None

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Key of its row and seed (`Variant.key`)."""
        return (self.way, self.method, self.width, self.seed)


def label_of(key: tuple[str, str, str, int]) -> str:
    """Return how messages name a row and its seed, from the key of its result (`Variant.key`)."""
    name, method, width, seed = key
    return f"{' '.join(part for part in (width, method, name) if part)}, seed {seed}"


def brevitas_optimizers(model: nn.Module, section: OptimizerSection) -> list[torch.optim.Optimizer]:
    """Return the optimizers of recipes, with Brevitas's scales in place of our intervals: Adam at their rate."""
    scales = [parameter for name, parameter in model.named_parameters() if "scaling_impl" in name]
    for parameter in scales:
        parameter.requires_grad_(False)
    optimizers = make_optimizers(model, section)
    for parameter in scales:
        parameter.requires_grad_(True)
    return [*optimizers, torch.optim.Adam(scales, section.interval_learning_rate)]


class Job:
    """One row of one seed, from its float network, or from where an earlier start left it, to its result.

    Args:
        variant, seed: the row and its seed.
        bench, teacher: what it is made of.
        out: folder of the table; on a processor what the row has reached is kept in it after every epoch.
    """

    def __init__(self, variant: Variant, seed: int, bench: Bench, teacher: Teacher, out: Path) -> None:
        self.variant, self.seed, self.bench, self.teacher = variant, seed, bench, teacher
        self.folder = unfinished_folder(out, "_".join(map(str, variant.key(seed))))
        self.began = time.perf_counter()
        self.reached = Reached()
        self.oscillation: Oscillation | None = None
        self.stages = self._stages()
        self.stage, self.earlier = 0, 0
        self.learner = next(self.stages)
        if bench.keeps_epochs and holds_state(self.folder):
            self._take_up()

    def _take_up(self) -> None:
        """Go on from where an earlier start left the row."""
        while (reached := take_up(self.folder, self.stage, self.earlier, self.learner, self.oscillation)) is None:
            if not self._begin_stage():
                raise ConfigError(f"{self.folder} is of a row with other stages; remove it to begin the row anew.")
        self.reached = reached
        self.began -= reached.seconds
        self._set_progress()

    def _config(self, bits: int) -> QuantConfig:
        variant = self.variant
        return QuantConfig(
            weight_bits=bits,
            activation_bits=bits,
            method=variant.method,
            train_gamma=variant.gamma,
            gradient_scaling=variant.scaling,
            returning_weights=variant.returning,
        )

    def _stages(self) -> Iterator[Learner]:
        """Yield the learner of each stage in turn."""
        variant, epochs = self.variant, self.bench.epochs
        if not variant.bits:
            model = copy.deepcopy(self.teacher.model).train()
            section = OptimizerSection(epochs=epochs, learning_rate=variant.rate, weight_decay=5e-4)
            yield self._learner(model, section, 0)
            return
        ends = [round(epochs * sum(variant.shares[: index + 1])) for index in range(len(variant.bits))]
        state = None
        for index, bits in enumerate(variant.bits):
            if ends[index] == (ends[index - 1] if index else 0):
                continue
            section = StageSection(
                epochs=ends[index] - (ends[index - 1] if index else 0),
                weight_bits=bits,
                activation_bits=bits,
                learning_rate=variant.rate,
                weight_decay=variant.decay,
                interval_learning_rate=variant.interval_rate,
            )
            model = self._by_brevitas(bits) if variant.method == BREVITAS else self._prepared(bits, index, state)
            learner = self._learner(model, section, 200 + index)
            yield learner
            state = learner.model.state_dict()

    def _prepared(self, bits: int, index: int, state: dict[str, Tensor] | None) -> PreparedModel:
        """Return the initial network of a stage."""
        bench = self.bench
        network = copy.deepcopy(self.teacher.model).cpu()
        model = prepare(network, self._config(bits), bench.images.inputs[:1].cpu(), input_grid=bench.preprocessing)
        model.to(bench.device)
        if state is None:
            order = bench.order(1, self.seed * 1000 + 100 + index)
            calibrate(model, [bench.images.inputs[rows] for rows in order.rows[:CALIBRATION_BATCHES]])
        else:
            model.load_state_dict(state)
        return model

    def _by_brevitas(self, bits: int) -> nn.Module:
        """Return the float network with Brevitas's layers, calibrated with the same batches as ours."""
        model = copy.deepcopy(self.teacher.model)
        use_brevitas_layers(model, bits=bits, collect_stats_steps=CALIBRATION_BATCHES, inputs_of_layers=True)
        model.to(self.bench.device).train()
        order = self.bench.order(1, self.seed * 1000 + 100)
        with torch.no_grad():
            for rows in order.rows[: CALIBRATION_BATCHES + 1]:  # scales become parameters in the batch after the last
                model(self.bench.images.inputs[rows])
        return model

    def _learner(self, model: nn.Module, section: OptimizerSection, phase: int) -> Learner:
        order = self.bench.order(section.epochs, self.seed * 1000 + phase)
        learns_by_brevitas = self.variant.method == BREVITAS
        optimizers = brevitas_optimizers(model, section) if learns_by_brevitas else make_optimizers(model, section)
        images = self.bench.images
        if self.variant.oscillation is None:
            return Learner(model, optimizers, section, images, order, self._loss())
        self.oscillation = Oscillation(
            model,
            self.variant.oscillation,
            momentum=self.variant.oscillation_momentum,
            threshold=self.variant.oscillation_threshold,
            max_bits=self.variant.bits[-1],
        )
        state = [*self.oscillation.state_dict().values(), self.oscillation.threshold, self.oscillation.weight]
        return Learner(model, optimizers, section, images, order, self._loss(), self.oscillation.update, state)

    def _loss(self) -> Loss:
        logits_of, temperature, oscillation = self.teacher.logits, self.variant.temperature, self.oscillation

        def loss(logits: Tensor, labels: Tensor, numbers: Tensor) -> Tensor:
            if temperature is None:
                result = label_loss(logits, labels, numbers)
            else:
                expected = logits_of.index_select(0, numbers)
                result = distillation_loss(logits, expected, labels, temperature=temperature)
            return result if oscillation is None else result + oscillation.penalty()

        return loss

    @property
    def label(self) -> str:
        """Description of the row and its seed."""
        return label_of(self.variant.key(self.seed))

    def end_epoch(self, beside: int) -> None:
        """Wait for the end of the epoch, which `beside` other networks trained at the same time."""
        self.reached = Reached(
            losses=(*self.reached.losses, self.learner.end_epoch()),
            seconds=time.perf_counter() - self.began,
            beside=max(self.reached.beside, beside),
        )
        self._set_progress()
        if self.bench.keeps_epochs:
            keep(self.folder, self.stage, self.learner, self.reached, self.oscillation)

    def _set_progress(self) -> None:
        if self.oscillation is not None:
            with self.learner.own_stream():
                self.oscillation.set_progress(self.learner.done / self.learner.epochs)

    @property
    def at_end_of_stage(self) -> bool:
        """Whether the current stage has completed its epochs."""
        return self.learner.done == self.learner.epochs

    def next_stage(self) -> bool:
        """Start the next stage; return whether there is one."""
        if not self._begin_stage():
            return False
        self.learner.record()
        return True

    def _begin_stage(self) -> bool:
        epochs, following = self.learner.epochs, next(self.stages, None)
        if following is None:
            return False
        self.learner = following
        self.stage, self.earlier = self.stage + 1, self.earlier + epochs
        return True

    def result(self, keep: Path | None) -> Result:
        """Freeze and evaluate the network, and write the checkpoints if requested."""
        bench, variant, model = self.bench, self.variant, self.learner.model.eval()
        accuracy = bench.accuracy(model)
        frozen_accuracy = differing = None
        if isinstance(model, PreparedModel):
            frozen = freeze(model)
            frozen_accuracy = bench.accuracy(frozen)
            differing = differing_logits(frozen, bench)
        if keep is not None:
            config = self._config(variant.bits[-1]) if variant.bits else None
            info = bench.info("quantized" if variant.bits else "float", config, accuracy=accuracy)
            save_checkpoint(keep, info, model)
        way, method, width, seed = variant.key(self.seed)
        count = None if self.oscillation is None else self.oscillation.count()
        return Result(
            way=way,
            method=method,
            width=width,
            seed=seed,
            epochs=bench.epochs,
            accuracy=accuracy,
            frozen=frozen_accuracy,
            differing_logits=differing,
            losses=self.reached.losses,
            seconds=time.perf_counter() - self.began,
            beside=self.reached.beside,
            oscillating=None if count is None else count.oscillating,
            held=None if count is None else count.frozen,
        )


@torch.no_grad()
def differing_logits(frozen: nn.Module, bench: Bench) -> int:
    """Return the number of a frozen network's logits that differ between the device and the processor."""
    x = bench.images.inputs[:COMPARED_LOGITS]
    return int((frozen(x).cpu() != copy.deepcopy(frozen).cpu()(x.cpu())).sum())
