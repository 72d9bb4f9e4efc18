"""Movement of each learned interval in a stage, from calibration or the stage before to the end.

The start of intervals is among the metrics in the stage's checkpoint: `start/NAME/lower` and
`start/NAME/upper` for each quantizer. Movement counts in units of the distance there, half of the interval's width,
which means the same in every layer and at every bit width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import fx, nn

from qil_deploy.quantizers import IntervalQuantizer, WeightQuantizer

from .interval_shares import input_quantizers

_STAYS = 1e-6
_OF_WEIGHTS = ".weight_quantizer"


@dataclass(frozen=True, kw_only=True)
class IntervalMovement:
    """One interval at the start and at the end of a stage.

    Attributes:
        kind: of values.
        name: of the layer whose weights they are, or of the layers that read the activations.
        start_lower, start_upper, lower, upper: thresholds; of weights, magnitudes.
        lower_moved, upper_moved: in units of the distance at the start; upwards is positive.
    """

    kind: Literal["weights", "activations"]
    name: str
    start_lower: float
    start_upper: float
    lower: float
    upper: float
    lower_moved: float
    upper_moved: float

    @property
    def pruning_stays(self) -> bool:
        """Whether the lower threshold, below which values are pruned, ended where it began."""
        return abs(self.lower_moved) < _STAYS


def interval_starts(model: nn.Module) -> dict[str, float]:
    """Return the initial intervals of a prepared model as metrics."""
    starts = {}
    for name, quantizer in _learned_intervals(model):
        starts[f"start/{name}/lower"], starts[f"start/{name}/upper"] = quantizer.thresholds
    return starts


def interval_movements(model: fx.GraphModule, metrics: Mapping[str, float]) -> tuple[IntervalMovement, ...]:
    """Return the movement of each interval of a prepared model; empty for a run that did not record the start."""
    sources = input_quantizers(model)
    movements = []
    for name, quantizer in _learned_intervals(model):
        start = [metrics.get(f"start/{name}/{end}") for end in ("lower", "upper")]
        if start[0] is None or start[1] is None or start[0] >= start[1]:
            continue
        is_weights, (lower, upper) = isinstance(quantizer, WeightQuantizer), quantizer.thresholds
        readers = ", ".join(layer for layer, source in sources.items() if source == name)
        distance = (start[1] - start[0]) / 2
        movements.append(
            IntervalMovement(
                kind="weights" if is_weights else "activations",
                name=name.removesuffix(_OF_WEIGHTS) if is_weights else readers or name,
                start_lower=start[0],
                start_upper=start[1],
                lower=lower,
                upper=upper,
                lower_moved=(lower - start[0]) / distance,
                upper_moved=(upper - start[1]) / distance,
            )
        )
    return tuple(movements)


def _learned_intervals(model: nn.Module) -> Iterator[tuple[str, IntervalQuantizer]]:
    """Yield the intervals that have parameters; those of averaging layers have none."""
    for name, module in model.named_modules():
        if isinstance(module, IntervalQuantizer) and next(module.parameters(), None) is not None:
            yield name, module
