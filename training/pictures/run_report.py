"""Results of a training run as data: accuracies, epochs, shares that each layer cuts, confusions of classes.

`RUN/report.json` holds a `RunReport`, `RUN/report.html` (`html_report`) shows the same.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from qil_deploy.checkpoint import Builder, CheckpointInfo, load_model, read_info
from qil_deploy.datasets import ImageBatches
from qil_deploy.errors import DataError
from qil_deploy.integers import predictions
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.training.metrics_file import EpochLine

from .interval_movement import IntervalMovement, interval_movements
from .interval_shares import QuantizedValues, activation_values, input_quantizers, weight_values


@dataclass(frozen=True, kw_only=True)
class LayerShares:
    """Shares of a layer's weights and input that its quantizers cut.

    Attributes:
        layer: its name.
        weight_bits, weight_lower, weight_upper, gamma: of its weight quantizer; thresholds hold for magnitudes.
        pruned_weights, clipped_weights, zero_weights: shares in [0, 1]; zero are all whose code is 0.
        input_bits, input_lower, input_upper: of the quantizer that it reads from.
        pruned_inputs, clipped_inputs, zero_inputs: shares in [0, 1]; an 8-bit range prunes nothing.
    """

    layer: str
    weight_bits: int
    weight_lower: float
    weight_upper: float
    gamma: float
    pruned_weights: float
    clipped_weights: float
    zero_weights: float
    input_bits: int
    input_lower: float
    input_upper: float
    pruned_inputs: float
    clipped_inputs: float
    zero_inputs: float


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """One quantized stage; accuracies in percent, None where the stage was not frozen.

    Attributes:
        name: of the stage.
        accuracy: with fake quantization.
        frozen_at_once: after freezing, before more training.
        frozen_accuracy: after the frozen epochs.
        changed_at_once, changed: test images that get another class than before freezing: at once, and at the end.
        layers: as in fake quantization.
        movements: how far each interval moved in the stage, of weights and of activations; none if its checkpoint, like
            those of earlier versions, does not say where they began.
        oscillating_weights, frozen_weights: shares in [0, 1] after its last epoch; None if not counted.
    """

    name: str
    accuracy: float
    frozen_at_once: float | None
    frozen_accuracy: float | None
    changed_at_once: int | None
    changed: int | None
    layers: tuple[LayerShares, ...]
    movements: tuple[IntervalMovement, ...] = ()
    oscillating_weights: float | None = None
    frozen_weights: float | None = None

    def pruning_stays(self, kind: str) -> str:
        """Describe how many pruning thresholds of `weights` or `activations` did not change: "3 of 20"."""
        stays = [movement.pruning_stays for movement in self.movements if movement.kind == kind]
        return f"{sum(stays)} of {len(stays)}"


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Number of images of one class predicted as another; indices refer to `class_names` of the report."""

    label: int
    predicted: int
    images: int


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Sources from which phases learned besides the labels, from the recipe; single phases may differ.

    Attributes:
        teacher: `float`, the run's own float network, or the path of a checkpoint.
        weight: of the divergence from the teacher.
        temperature: of the softened predictions.
    """

    teacher: str
    weight: float
    temperature: float


@dataclass(frozen=True, kw_only=True)
class Versions:
    """Software that made the report."""

    qil_deploy: str
    torch: str
    torchvision: str
    numpy: str
    python: str


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """A whole run.

    Attributes:
        schema: `SCHEMA`.
        name: of the recipe.
        model, data: names of network and data set.
        test_images: how many the accuracies cover.
        activation_images: how many test images the shares of inputs were measured on.
        float_accuracy: of the float network, in percent; None before its phase has ended.
        network: the last network, which `confusions` are of.
        accuracy: of that network, counted anew, in percent.
        class_names: one per class.
        confusions: all pairs that occur, right ones included.
        distillation: the teacher; None without one.
    """

    SCHEMA: ClassVar[str] = "qil_deploy.run/1"

    schema: str
    name: str
    model: str
    data: str
    test_images: int
    activation_images: int
    float_accuracy: float | None
    network: str
    accuracy: float
    class_names: tuple[str, ...]
    stages: tuple[StageReport, ...]
    epochs: tuple[EpochLine, ...]
    confusions: tuple[Confusion, ...]
    versions: Versions
    distillation: Distillation | None = None

    def matrix(self) -> NDArray[np.int64]:
        """Return the confusion matrix [class, predicted class]."""
        matrix = np.zeros((len(self.class_names),) * 2, np.int64)
        for each in self.confusions:
            matrix[each.label, each.predicted] = each.images
        return matrix


def read_prepared(path: Path, build: Builder, device: torch.device) -> tuple[CheckpointInfo, fx.GraphModule]:
    """Read the checkpoint of a quantized stage.

    Raises:
        CheckpointError: it is missing or damaged.
        DataError: it is from another phase.
    """
    info, model = load_model(path, build)
    if info.kind != "quantized" or not isinstance(model, fx.GraphModule):
        raise DataError(f"{path} is a {info.kind} checkpoint; a quantized one was expected.")
    model.to(device)
    return info, model


def stage_report(
    folder: Path,
    name: str,
    model: fx.GraphModule,
    layers: tuple[LayerShares, ...],
    epochs: Sequence[EpochLine],
) -> StageReport:
    """Combine the checkpoints of a stage with the epochs of its run; `model` is the stage's network."""
    trained = read_info(folder / f"{name}.safetensors").metrics
    last = next((line for line in reversed(epochs) if line.phase == name), None)
    frozen = folder / f"{name}_frozen.safetensors"
    metrics = read_info(frozen).metrics if frozen.is_file() else {}
    changed = [metrics.get(key) for key in ("changed_predictions_at_once", "changed_predictions")]
    return StageReport(
        name=name,
        accuracy=trained["accuracy"],
        frozen_at_once=metrics.get("accuracy_frozen_at_once"),
        frozen_accuracy=metrics.get("accuracy"),
        changed_at_once=None if changed[0] is None else int(changed[0]),
        changed=None if changed[1] is None else int(changed[1]),
        layers=layers,
        movements=interval_movements(model, trained),
        oscillating_weights=None if last is None else last.oscillating_weights,
        frozen_weights=None if last is None else last.frozen_weights,
    )


def layer_shares(
    model: fx.GraphModule, images: NDArray[np.uint8], preprocessing: Preprocessing
) -> tuple[tuple[LayerShares, ...], list[QuantizedValues], dict[str, QuantizedValues]]:
    """Measure the shares that each layer of a prepared model cuts.

    Args:
        model: prepared, in evaluation mode.
        images: uint8 [N, C, H, W], at least one.
        preprocessing: from images to the model's input.

    Returns:
        The shares by layer, and the values of weights and activations that they come from.
    """
    x = torch.from_numpy(preprocessing.normalize(images))
    weights, activations = weight_values(model), activation_values(model, x.to(next(model.parameters()).device))
    sources = input_quantizers(model)
    shares = tuple(_layer_shares(each, activations[sources[each.name]]) for each in weights)
    return shares, weights, activations


def _layer_shares(weights: QuantizedValues, inputs: QuantizedValues) -> LayerShares:
    return LayerShares(
        layer=weights.name,
        weight_bits=weights.bits,
        weight_lower=weights.lower,
        weight_upper=weights.upper,
        gamma=weights.gamma,
        pruned_weights=weights.pruned,
        clipped_weights=weights.clipped,
        zero_weights=weights.zero,
        input_bits=inputs.bits,
        input_lower=inputs.lower,
        input_upper=inputs.upper,
        pruned_inputs=inputs.pruned,
        clipped_inputs=inputs.clipped,
        zero_inputs=inputs.zero,
    )


def spread_images(images: ImageBatches, count: int, parts: int = 16) -> NDArray[np.uint8]:
    """Return about `count` images, uint8 [N, C, H, W], in `parts` runs spread over the set, which may be sorted."""
    if len(images) <= count:
        return images.read(0, len(images)).images
    length = count // parts
    starts = [part * (len(images) - length) // (parts - 1) for part in range(parts)]
    return np.concatenate([images.read(start, start + length).images for start in starts])


def find_confusions(
    model: nn.Module, images: ImageBatches, preprocessing: Preprocessing, advance: Callable[[int], object]
) -> tuple[Confusion, ...]:
    """Classify a whole set, batch by batch; `advance` is called with the number of finished images."""
    classes = len(images.class_names)
    matrix = np.zeros((classes, classes), np.int64)
    for batch in images:
        np.add.at(matrix, (batch.labels, predictions(model, batch.images, preprocessing)), 1)
        advance(len(batch))
    pairs = zip(*np.nonzero(matrix), strict=True)
    return tuple(Confusion(label=int(a), predicted=int(b), images=int(matrix[a, b])) for a, b in pairs)


def describe_versions() -> Versions:
    """Return the versions of the software in use."""
    return Versions(
        qil_deploy=version("qil-deploy"),
        torch=torch.__version__,
        torchvision=version("torchvision"),
        numpy=np.__version__,
        python=platform.python_version(),
    )
