"""Curves of a training run for TensorBoard: loss and learning rate per step, accuracy per epoch, every interval.

    train/KEY                       of every step
    epoch/KEY                       of every epoch
    interval/LAYER/weight_lower     thresholds of the weights, likewise `weight_upper`, and `weight_gamma` if trained
    interval/TENSOR/lower           thresholds of the activations, likewise `upper`; `step` of an 8-bit range

Look at them with `tensorboard --logdir RUN/curves`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from torch import nn
from torch.utils.tensorboard import SummaryWriter

from qil_deploy.errors import OutputError
from qil_deploy.quantizers import ActivationQuantizer, RangeQuantizer, WeightQuantizer


class Curves:
    """Writes the curves of one phase.

    Args:
        folder: for the event files; created if missing.
        purge_step: the first step that is done now. Points that an interrupted start wrote from there on are hidden.
            0 for a phase that begins, perhaps anew; None leaves every point.

    Raises:
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        try:
            self._writer = SummaryWriter(str(folder), purge_step=purge_step)
        except OSError as error:
            raise OutputError(f"cannot write curves to {folder}: {error.strerror or error}.") from error

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_exception: object) -> None:
        """Close the files."""
        self.close()

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Add the figures of a step, such as its loss."""
        self._add("train", step, values)

    def epoch(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the figures of an epoch; `step` is its last one (a phase continued after it would hide a later one)."""
        self._add("epoch", step, metrics)

    def intervals(self, step: int, model: nn.Module) -> None:
        """Add the intervals of a prepared model, those of the weights of a frozen one, none of a float one."""
        self._add("interval", step, dict(interval_values(model)))

    def flush(self) -> None:
        """Flush to disk, whenever a state is saved from which a later start resumes."""
        self._writer.flush()

    def close(self) -> None:
        """Write the rest and close the files."""
        self._writer.close()

    def _add(self, group: str, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(f"{group}/{key}", value, step)


def interval_values(model: nn.Module) -> Iterator[tuple[str, float]]:
    """Yield (name, value) of every learned threshold, exponent and step of a model."""
    for path, module in model.named_modules():
        if isinstance(module, WeightQuantizer):
            # A frozen layer holds the quantized one as `layer`.
            layer = path.removesuffix(".weight_quantizer").removesuffix(".layer")
            lower, upper = module.thresholds
            yield f"{layer}/weight_lower", lower
            yield f"{layer}/weight_upper", upper
            if module.gamma is not None:
                yield f"{layer}/weight_gamma", float(module.gamma.detach())
        elif isinstance(module, ActivationQuantizer):
            lower, upper = module.thresholds
            yield f"{path}/lower", lower
            yield f"{path}/upper", upper
        elif isinstance(module, RangeQuantizer):
            yield f"{path}/step", float(module.step.detach())
