"""Train many small networks side by side on one device, replaying each step from a CUDA graph if possible.

A step of a small network consists of a thousand kernels that take microseconds each, and Python launches them more
slowly than a GPU computes them. Recorded once and replayed, a step costs a single launch; steps of different networks
run at the same time, each on its own stream. Everything that changes between steps is on the device before the first
one: the order of the images, which of them are mirrored, and the rate. Without a GPU the same steps run one after the
other.

The batches are the same as those of a recipe with the same seed (`ArrayBatches`): same order, same mirrored images.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qil_deploy.datasets import ImageSet
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.training.data import ArrayBatches, to_input
from qil_deploy.training.models import in_memory_format, memory_format_for
from qil_deploy.training.optimizers import rate_factor
from qil_deploy.training.recipe_sections import OptimizerSection

WARM_UP_STEPS = 3  # before a step is recorded: libraries select their kernels in the first steps

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function from logits [n, classes], labels [n] and image numbers [2n: n images, then n mirrored] to a scalar."""


@dataclass(frozen=True, kw_only=True)
class Images:
    """A training set on the device, already preprocessed.

    Attributes:
        inputs: float32 [N, C, H, W].
        labels: int64 [N].
    """

    inputs: Tensor
    labels: Tensor

    @classmethod
    def of(cls, images: ImageSet, preprocessing: Preprocessing, device: torch.device) -> Images:
        """Move a training set to a device."""
        inputs = to_input(torch.tensor(images.images), preprocessing)
        return cls(inputs=inputs.to(device), labels=torch.tensor(images.labels).to(device))


@dataclass(frozen=True, kw_only=True)
class Order:
    """The images in each batch of a phase.

    Attributes:
        rows: int64 [steps, batch], image numbers.
        mirrored: bool [steps, batch], whether images are mirrored.
        batches: number of steps in an epoch.
    """

    rows: Tensor
    mirrored: Tensor
    batches: int

    @classmethod
    def of(cls, batches: ArrayBatches, epochs: int, device: torch.device) -> Order:
        """Draw the batches of a phase of a recipe that mirrors images and does not shift them."""
        drawn = [batches.drawn(epoch, index) for epoch in range(epochs) for index in range(len(batches))]
        rows, mirrored = (torch.stack(parts).to(device) for parts in zip(*drawn, strict=True))
        return cls(rows=rows, mirrored=mirrored, batches=len(batches))


class Learner:
    """One network in training: its step and its progress.

    Args:
        model: network on the device, trained in place.
        optimizers: optimizers of its parameters.
        section: schedule; its number of epochs is that of `order`.
        images, order: training images and their order.
        loss: function to minimise.
        after_step: called after each step.
        state: other tensors that a step changes in place.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        section: OptimizerSection,
        images: Images,
        order: Order,
        loss: Loss,
        after_step: Callable[[], None] = lambda: None,
        state: Sequence[Tensor] = (),
    ) -> None:
        self.model, self.optimizers, self.images, self.order = model, list(optimizers), images, order
        self.loss, self.after_step, self.state = loss, after_step, state
        self.memory_format = memory_format_for(model)
        device = images.inputs.device
        self.steps = len(order.rows)
        factors = [rate_factor(step, self.steps, section) for step in range(self.steps)]
        self.factors = torch.tensor(factors, dtype=torch.float32, device=device)
        self.number = torch.zeros(1, dtype=torch.int64, device=device)
        self.loss_sum = torch.zeros((), device=device)
        self.rates: list[tuple[Tensor, float]] = []
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if device.type == "cuda":  # a rate given as a number would be recorded as a constant
                    self.rates.append((torch.zeros((), device=device), float(group["lr"])))
                    group["lr"] = self.rates[-1][0]
                    group["capturable" if isinstance(optimizer, torch.optim.Adam) else "fused"] = True
                    group["foreach"] = None if group.get("fused") else group["foreach"]
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.done = 0

    def step(self) -> None:
        """Run one forward pass, backward pass and update, without waiting for the device."""
        rows = self.order.rows.index_select(0, self.number)[0]
        mirrored = self.order.mirrored.index_select(0, self.number)[0]
        factor = self.factors.index_select(0, self.number)[0]
        for rate, base in self.rates:
            rate.copy_(factor * base)
        x = self.images.inputs.index_select(0, rows)
        x = in_memory_format(torch.where(mirrored[:, None, None, None], x.flip(3), x), self.memory_format)
        labels = self.images.labels.index_select(0, rows)
        loss = self.loss(self.model.forward(x), labels, rows + mirrored * len(self.images.labels))
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        self.after_step()
        self.loss_sum += loss.detach()
        self.number += 1

    def record(self) -> None:
        """Record a step, on a CUDA device; the network is unchanged afterwards."""
        if self.stream is None:
            return
        self.model.train()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            kept = [(tensor, tensor.detach().clone()) for tensor in self._changed()]
            for _ in range(WARM_UP_STEPS):
                self.step()
            self.graph = torch.cuda.CUDAGraph()
            # Not with torch.cuda.graph, which would wait for the device's work on other networks.
            self.graph.capture_begin(capture_error_mode="thread_local")
            self.step()
            self.graph.capture_end()
            with torch.no_grad():
                for tensor, value in kept:
                    tensor.copy_(value)
                for optimizer in self.optimizers:
                    for state in optimizer.state.values():
                        for value in state.values():
                            value.zero_()
                self.number.zero_()
                self.loss_sum.zero_()

    def _changed(self) -> list[Tensor]:
        return [*self.model.parameters(), *self.model.buffers(), *self.state]

    def replay(self) -> None:
        """Launch one step on the device."""
        if self.graph is None or self.stream is None:
            self._set_rates()
            self.step()
        else:
            with torch.cuda.stream(self.stream):
                self.graph.replay()

    def _set_rates(self) -> None:
        """Set rates given as numbers, if there is no CUDA device."""
        factor = float(self.factors[int(self.number)])
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
                group["lr"] = group["initial_lr"] * factor

    def end_epoch(self) -> float:
        """Wait for the end of the epoch and return its mean loss."""
        if self.stream is not None:
            self.stream.synchronize()
        loss = float(self.loss_sum) / self.order.batches
        self.loss_sum.zero_()
        self.done += 1
        return loss

    @property
    def epochs(self) -> int:
        """Number of epochs of the phase."""
        return self.steps // self.order.batches

    def own_stream(self) -> contextlib.AbstractContextManager[object]:
        """Return a context whose operations run after all previous steps and before all later ones."""
        return contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)


def run_epoch(learners: Sequence[Learner]) -> None:
    """Launch the steps of an epoch, one of each network in turn: the device queues only few per stream."""
    for learner in learners:
        learner.model.train()
    for _ in range(max((learner.order.batches for learner in learners), default=0)):
        for learner in learners:
            learner.replay()
