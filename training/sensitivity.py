"""Measure which layers are most sensitive to fewer bits: lower one layer at a time, before any training.

The network that is measured against has nothing lowered: a quantized checkpoint as it is, or a float one at
`FLOAT_WEIGHT_BITS` and `FLOAT_ACTIVATION_BITS` throughout. Each trial lowers one layer, sets what changed anew from
calibration images (`change_bits`), and is judged on other images:

    KL = mean over images of   sum_k p_k * (log p_k - log q_k)

with the class probabilities p of the network with nothing lowered, and q of the lowered one.

KL needs no labels and is zero for no change; the increase of the cross-entropy and the change of accuracy are given
with it. All images are drawn from the training split: bits chosen on test images would be tuned to them. The network
knows these images, so the figures rank layers; they do not predict accuracy, nor what training wins back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from qil_deploy.accuracy import top1_percent
from qil_deploy.checkpoint import CheckpointInfo, example_input, load_model
from qil_deploy.config import LayerBits, LayerOverride, Placement, QuantConfig
from qil_deploy.datasets import ImageSet, load_batches
from qil_deploy.errors import CheckpointError, ConfigError, DataError
from qil_deploy.network import (
    bits_read,
    calibrate,
    capture_network,
    change_bits,
    edge_layers,
    estimate_batchnorm,
    isolate,
    logits_of,
    prepare,
    quantized_layers,
)
from qil_deploy.onnx_io import stored_bytes
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.terminal import Progress

from .data import seeded, to_input
from .memory import require_memory
from .models import model_builder

What = Literal["weights", "activations", "both"]

FLOAT_WEIGHT_BITS, FLOAT_ACTIVATION_BITS = 7, 8
WIDTHS = range(2, 9)
_BATCH_SIZE = 128
_BATCH_VALUES = 1 << 23


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Widths to try, and the number of images.

    Attributes:
        widths: bits that layers are lowered to.
        what: the part of a layer that is lowered: its weights, the activations it reads, or both.
        edges: whether the weights of the first and last layer are lowered as well; they read 8-bit codes anyway.
        placement, allow_float: of a float checkpoint; a quantized one has its own.
        images: to measure on.
        calibration_images: other ones, to set intervals and BatchNorm's statistics from.
        seed: of the choice of images.
    """

    widths: tuple[int, ...] = (4, 3, 2)
    what: What = "both"
    edges: bool = False
    placement: Placement = "integer"
    allow_float: bool = False
    images: int = 1000
    calibration_images: int = 256
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Cross-entropy, KL and its standard error in nats per image, and accuracy in percent, of a network."""

    loss: float
    kl: float
    kl_error: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One layer lowered: the width, its bits then, and the measurement."""

    width: int
    bits: LayerBits
    measured: Measurement


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """One layer: its number of weights, its bits with nothing lowered, and its trials by decreasing width."""

    name: str
    weights: int
    bits: LayerBits
    trials: tuple[Trial, ...]

    @property
    def worst(self) -> float:
        """The largest KL of its trials; 0 without any."""
        return max((trial.measured.kl for trial in self.trials), default=0.0)


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """All layers in graph order, and the network with nothing lowered, for which `baseline.kl` is 0."""

    baseline: Measurement
    layers: tuple[LayerSensitivity, ...]

    @property
    def bytes(self) -> int:
        """Packed weights of all quantized layers, with nothing lowered."""
        return sum(stored_bytes(layer.weights, layer.bits.weight_bits) for layer in self.layers)


class Probe:
    """A checkpoint's network, whose layers can be lowered and measured repeatedly.

    Args:
        checkpoint: a float or quantized one.
        plan: what is tried.
        trusted_model: the user's function that builds its network, `module:function`, where it has one.

    Raises:
        CheckpointError: the checkpoint is frozen, or cannot be read.
        ConfigError: an invalid width, or more images than there are.
        DataError: the data set cannot be loaded.
        UnsupportedModelError: the network cannot be quantized.
    """

    def __init__(self, checkpoint: Path, plan: Plan, trusted_model: str | None = None) -> None:
        _check(plan)
        self.plan = plan
        build = model_builder(trusted_model)
        self.info, model = load_model(checkpoint, build)
        if self.info.kind == "frozen":
            raise CheckpointError(
                f"checkpoint {checkpoint} is frozen, its bits are fixed; name the quantized one that it was made from "
                "(the same name without _frozen) or the float one."
            )
        images, calibration = _draw_images(self.info, plan)
        self.images = images
        self.batches = list(
            to_input(torch.from_numpy(calibration.images), self.info.preprocessing).tensor_split(
                math.ceil(len(calibration) / _batch_size(self.info.preprocessing))
            )
        )
        self.network = build(self.info.model_name, self.info.model_arguments)
        self.config, self.base = self._unchanged(model)
        layers = quantized_layers(self.base)
        read = bits_read(self.base)
        self.bits = {
            name: LayerBits(weight_bits=layer.weight_quantizer.bits, activation_bits=read[name])
            for name, layer in layers.items()
        }
        self.weights = {name: layer.weight.numel() for name, layer in layers.items()}
        self.edges = self._edges()
        self.log_probabilities = self._answers(self.base)

    def _unchanged(self, model: nn.Module) -> tuple[QuantConfig, fx.GraphModule]:
        """Return the network with nothing lowered; BatchNorm's statistics come from the images that trials use."""
        if isinstance(model, fx.GraphModule) and self.info.config is not None:
            if not self.info.config.norms_stay:  # then trials keep the statistics, too
                estimate_batchnorm(model, self.batches)
            return self.info.config, model
        config = QuantConfig(
            weight_bits=FLOAT_WEIGHT_BITS,
            activation_bits=FLOAT_ACTIVATION_BITS,
            placement=self.plan.placement,
            allow_float=self.plan.allow_float,
        )
        prepared = prepare(model, config, example_input(self.info.preprocessing), input_grid=self.info.preprocessing)
        calibrate(prepared, self.batches)
        return config, prepared.eval()

    def _edges(self) -> set[str]:
        example = example_input(self.info.preprocessing)
        captured = capture_network(
            self.network,
            example,
            allow_float=self.config.allow_float,
            float_gates=self.config.float_gates,
            float_scales=self.config.float_scales,
            float_rows=self.config.float_rows,
        )
        isolate(captured, self.config)
        return {str(node.target) for node in edge_layers(captured)}

    def lowered(self, layer: str, width: int) -> LayerBits:
        """Return the bits of a layer, lowered to a width according to the plan, if there is anything to lower."""
        bits = self.bits[layer]
        if layer in self.edges and not self.plan.edges:
            return bits
        weight, activation = bits.weight_bits, bits.activation_bits
        if self.plan.what != "activations":
            weight = min(weight, width)
        if self.plan.what != "weights" and layer not in self.edges:
            activation = min(activation, width)
        return LayerBits(weight_bits=weight, activation_bits=activation)

    def measure(self, bits: dict[str, LayerBits]) -> Measurement:
        """Measure the network with other bits in some layers; BatchNorm's statistics are estimated anew."""
        if not bits:
            return self._judge(self.log_probabilities)
        # After all others, as the last match wins.
        overrides = {name: entry for name, entry in self.config.overrides.items() if name not in bits}
        overrides |= {name: LayerOverride(**entry.model_dump()) for name, entry in bits.items()}
        config = self.config.model_copy(update={"overrides": overrides})
        model = change_bits(self.base, self.network, config, self.batches, input_grid=self.info.preprocessing)
        return self._judge(self._answers(model))

    @torch.no_grad()
    def _answers(self, model: nn.Module) -> Tensor:
        """Return the logarithms of the class probabilities, float64 [images, classes]."""
        parts = torch.from_numpy(self.images.images).split(_batch_size(self.info.preprocessing))
        logits = torch.cat([logits_of(model(to_input(part, self.info.preprocessing))) for part in parts])
        return F.log_softmax(logits.double(), 1)

    def _judge(self, answers: Tensor) -> Measurement:
        labels = torch.from_numpy(self.images.labels)
        expected = self.log_probabilities
        kl = (expected.exp() * (expected - answers)).sum(1)
        return Measurement(
            loss=float(F.nll_loss(answers, labels)),
            kl=float(kl.mean()),
            kl_error=float(kl.std()) / math.sqrt(len(kl)),
            accuracy=top1_percent(int((answers.argmax(1) == labels).sum()), len(labels)),
        )


def measure_sensitivity(probe: Probe, progress: Progress) -> Sensitivity:
    """Lower each layer to each width, everything else unchanged, and measure.

    Raises:
        ConfigError: no layer has more bits than the widths of the plan.
    """
    tries = [
        (name, width, probe.lowered(name, width))
        for name in probe.bits
        for width in sorted(set(probe.plan.widths), reverse=True)
    ]
    tries = [entry for entry in tries if entry[2] != probe.bits[entry[0]]]
    if not tries:
        widths = ", ".join(map(str, probe.plan.widths))
        raise ConfigError(f"no layer would be lowered: all have {widths} bits or fewer already; name fewer in --bits.")
    task = progress.add_task("lowering", total=len(tries))
    trials: dict[str, list[Trial]] = {name: [] for name in probe.bits}
    for name, width, bits in tries:
        progress.update(task, description=f"{name} at {width} bits")
        trials[name].append(Trial(width=width, bits=bits, measured=probe.measure({name: bits})))
        progress.advance(task)
    progress.remove_task(task)
    layers = [
        LayerSensitivity(name=name, weights=probe.weights[name], bits=bits, trials=tuple(trials[name]))
        for name, bits in probe.bits.items()
    ]
    return Sensitivity(baseline=probe.measure({}), layers=tuple(layers))


def _check(plan: Plan) -> None:
    wrong = [width for width in plan.widths if width not in WIDTHS]
    if wrong or not plan.widths:
        raise ConfigError(f"bits are {list(plan.widths)}; give whole numbers from {WIDTHS[0]} to {WIDTHS[-1]}.")
    if plan.seed < 0:
        raise ConfigError(f"the seed is {plan.seed}; give 0 or more.")
    if plan.images < 2 or plan.calibration_images < 1:
        raise ConfigError(
            f"{plan.images} images and {plan.calibration_images} for calibration are too few; give at least 2 and 1."
        )


def _draw_images(info: CheckpointInfo, plan: Plan) -> tuple[ImageSet, ImageSet]:
    """Draw the images for the measurement, and others for calibration, from the training split."""
    batches = load_batches(info.data, "train", preprocessing=info.preprocessing, batch_size=1)
    count = plan.images + plan.calibration_images
    if count > len(batches):
        raise DataError(
            f"{plan.images} images and {plan.calibration_images} others for calibration are wanted, but the training "
            f"split of {info.data} has {len(batches)}; lower --limit or --calibration-images."
        )
    values = math.prod(info.preprocessing.shape)
    require_memory(
        count * values + 4.0 * plan.calibration_images * values,
        f"{count:,} images of shape {list(info.preprocessing.shape)}",
        "lower --limit or --calibration-images",
    )
    order = torch.randperm(len(batches), generator=seeded(plan.seed))[:count].tolist()
    chosen = [batches.read(index, index + 1) for index in order]
    return _joined(chosen[: plan.images]), _joined(chosen[plan.images :])


def _batch_size(preprocessing: Preprocessing) -> int:
    """Return how many images pass through a network at once: fewer where they are large."""
    return max(1, min(_BATCH_SIZE, _BATCH_VALUES // math.prod(preprocessing.shape)))


def _joined(images: Sequence[ImageSet]) -> ImageSet:
    return ImageSet(
        images=np.concatenate([part.images for part in images]),
        labels=np.concatenate([part.labels for part in images]),
        class_names=images[0].class_names,
    )
