"""The sections of a recipe: network, augmentation, and the training of each phase."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from qil_deploy.config import (
    Bits,
)
from qil_deploy.untrusted_text import excerpt

from .recipe_values import (
    LARGEST_IMAGE_SIDE,
    LARGEST_RATE,
    Epochs,
    Images,
    IntervalOptimizer,
    Name,
    NotNegative,
    Overrides,
    Positive,
    Share,
    Switch,
    Temperature,
)

NOISE = "noise"
OWN_FLOAT = "float"

# Also the defaults of `optimizers`.
STAGE_LEARNING_RATE = 0.02
STAGE_WEIGHT_DECAY = 1e-4
INTERVAL_LEARNING_RATE = 2e-3

CALIBRATION_BATCHES = 8

# Also the default of `distillation_loss`.
DISTILLATION_WEIGHT, DISTILLATION_TEMPERATURE = 1.0, 4.0

# Also those of `oscillation`.
OSCILLATION_MOMENTUM = 0.001
OSCILLATION_THRESHOLD = (0.1, 0.01)
OSCILLATION_DAMPENING = 0.1


class Section(BaseModel):
    """A part of a recipe, or a whole one; immutable, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSection(Section):
    """The network.

    Attributes:
        name: in `training.models.MODELS`, or `module:function` of yours.
        width: channels of the first group of a CIFAR-style ResNet, or of the first convolution of MobileNetV2; other
            networks have none (None: its own).
        weights: where it starts from: None (random), `torchvision`, or a file (`initial_weights`).
        reset_head: start the last layer anew if `weights` has another number of classes.
    """

    name: Name
    width: Annotated[int, Field(ge=1, le=65_536, strict=True)] | None = None
    weights: Name | None = None
    reset_head: Switch = False


class AugmentationSection(Section):
    """Random changes of training images.

    Attributes:
        flip: mirror left to right.
        shift: shift by up to this many pixels; for data sets in memory.
        crop: cut out and resize, as is usual for ImageNet; for folders.
    """

    flip: Switch = False
    shift: Annotated[int, Field(ge=0, le=LARGEST_IMAGE_SIDE, strict=True)] = 0
    crop: Switch = False


class OptimizerSection(Section):
    """Optimization of one phase.

    Weights: SGD with Nesterov momentum 0.9, weight decay on convolution and linear weights only. Interval
    parameters: Adam or that SGD, without weight decay. Both rates rise linearly over the first `warmup` share of the
    steps and then follow the schedule.

    Attributes:
        batch_size: over all processes.
        output_scale_learning_rate: of output scales and shifts; None: `interval_learning_rate`, or its default where
            that is 0.
        interval_optimizer: of interval parameters; `sgd` is the paper's, and needs rates far below those of weights.
        schedule: `cosine` to zero, or `step`: times `decay` at each of `milestones`, shares of the phase.
        label_smoothing: of the cross-entropy.
        gradient_norm: largest norm of the gradient of all weights; longer ones are shortened to it. None: never.
        average: decay per step of a moving average of the weights, which replaces them at the end; None without.
        batchnorm_batches: batches from which BatchNorm's statistics are estimated anew at the end; 0 leaves them.
        distillation_weight, distillation_temperature: those of this phase, instead of the recipe's (`distillation`);
            with a weight of 0 only labels count.
    """

    epochs: Epochs
    batch_size: Images = 128
    learning_rate: Positive = 0.1
    weight_decay: NotNegative = 5e-4
    interval_learning_rate: NotNegative = INTERVAL_LEARNING_RATE
    output_scale_learning_rate: Positive | None = None
    interval_optimizer: IntervalOptimizer = "adam"
    warmup: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.05
    schedule: Literal["cosine", "step"] = "cosine"
    milestones: Annotated[tuple[Share, ...], Field(max_length=1000)] = ()
    decay: Annotated[float, Field(gt=0, le=1, strict=True)] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=1, strict=True)] = 0.0
    gradient_norm: Positive | None = None
    average: Share | None = None
    batchnorm_batches: Annotated[int, Field(ge=0, le=1_000_000, strict=True)] = 0
    distillation_weight: NotNegative | None = None
    distillation_temperature: Temperature | None = None

    @model_validator(mode="after")
    def _check_milestones(self) -> Self:
        if bool(self.milestones) != (self.schedule == "step") or list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(
                f"milestones {excerpt(list(self.milestones))} with schedule {self.schedule!r}: schedule 'step' needs "
                "rising milestones between 0 and 1, 'cosine' none"
            )
        return self


def output_scale_rate(of_intervals: float, of_scales: float | None) -> float:
    """Return the learning rate of output scales: their own, else that of intervals, else the default of that."""
    return of_scales or of_intervals or INTERVAL_LEARNING_RATE


class StageSection(OptimizerSection):
    """One quantized stage: its bits, its optimization, and the frozen epochs at its end.

    Attributes:
        overrides: bits by layer-name pattern, after those of the recipe.
        from_float: start from the float network and its data instead of the stage before.
        calibration_batches: batches that intervals, output scales and compensated rounding are set from if the stage
            starts from the float network, or if its overrides need other intervals than the stage before. Otherwise
            nothing is calibrated, and only the default is accepted (`rehearsal`).
        frozen_gradient_norm: `gradient_norm` of the frozen epochs. With constant statistics BatchNorm no longer holds
            the outputs of a layer together when its weights move, and one long step can end the training.
        oscillation: how to treat weights of at most 4 bits that jump between two codes (`oscillation`): `none`,
            `count` them, `freeze` or `dampen` them. Not in frozen epochs.
        oscillation_momentum: of the moving averages of their frequency and code.
        oscillation_threshold: frequency above which they are frozen, at the start of the stage and at its end.
        oscillation_dampening: largest weight of the dampening in the loss.
    """

    weight_bits: Bits
    activation_bits: Bits
    overrides: Overrides = Field(default_factory=dict)
    from_float: Switch = False
    calibration_batches: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] = CALIBRATION_BATCHES
    learning_rate: Positive = STAGE_LEARNING_RATE
    weight_decay: NotNegative = STAGE_WEIGHT_DECAY
    frozen_epochs: Epochs = 0
    frozen_learning_rate: Positive = 2e-3
    frozen_gradient_norm: Positive | None = 1.0
    oscillation: Literal["none", "count", "freeze", "dampen"] = "none"
    oscillation_momentum: Share = OSCILLATION_MOMENTUM
    oscillation_threshold: tuple[Share, Share] = OSCILLATION_THRESHOLD
    oscillation_dampening: NotNegative = OSCILLATION_DAMPENING

    @property
    def name(self) -> str:
        """Name of the stage in files and metrics, for example `w4a4`."""
        return f"w{self.weight_bits}a{self.activation_bits}"

    @model_validator(mode="after")
    def _check_frozen_rate(self) -> Self:
        rates = {
            "interval_learning_rate": self.frozen_interval_learning_rate,
            "output_scale_learning_rate": self._frozen_scale_rate,
        }
        for key, rate in rates.items():
            if self.frozen_epochs and rate > LARGEST_RATE:
                raise ValueError(
                    f"frozen epochs would have the {key} {rate:g}: {key} times frozen_learning_rate by learning_rate"
                )
        return self

    @property
    def frozen_interval_learning_rate(self) -> float:
        """Rate of interval parameters in frozen epochs: as far below that of the stage as the rate of weights is."""
        return self._in_frozen_epochs(self.interval_learning_rate)

    @property
    def _frozen_scale_rate(self) -> float:
        return self._in_frozen_epochs(output_scale_rate(self.interval_learning_rate, self.output_scale_learning_rate))

    def _in_frozen_epochs(self, rate: float) -> float:
        return rate * self.frozen_learning_rate / self.learning_rate

    def frozen_section(self) -> OptimizerSection:
        """Return the optimization of the frozen epochs."""
        return OptimizerSection(
            epochs=self.frozen_epochs,
            batch_size=self.batch_size,
            learning_rate=self.frozen_learning_rate,
            weight_decay=self.weight_decay,
            interval_learning_rate=self.frozen_interval_learning_rate,
            output_scale_learning_rate=self._frozen_scale_rate or None,  # a rate of zero gives the default
            interval_optimizer=self.interval_optimizer,
            label_smoothing=self.label_smoothing,
            gradient_norm=self.frozen_gradient_norm,
            distillation_weight=self.distillation_weight,
            distillation_temperature=self.distillation_temperature,
        )


class QuantizerOnlySection(Section):
    """Quantization of a trained float network by unlabelled images of another data set (`quantizer_only`).

    Attributes:
        weights: the float checkpoint, which replaces the float phase.
        images: a data set or folder, whose training images are used without their labels, or `noise`.
        limit: how many images to learn from, the first ones; None: all.
        noise_images: how many images of noise.
        noise_blur: standard deviation, in pixels, of the Gaussian that smooths noise; 0 for white noise.
        output_scales: one for each layer, or scale and shift for each channel (`QuantConfig`).
        rounding: of weights at calibration: to the nearest code, or `compensated`, so that errors cancel (`calibrate`).
        loss: `squared_error` of the logits, or `divergence` of the softened predictions, at `temperature`.
    """

    weights: Name
    images: Name
    limit: Images | None = None
    noise_images: Images = 1536
    noise_blur: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False, strict=True)] = 0.0
    output_scales: Literal["all", "channels"] = "all"
    rounding: Literal["nearest", "compensated"] = "nearest"
    loss: Literal["squared_error", "divergence"] = "squared_error"
    temperature: Temperature = 2.0


class DistillationSection(Section):
    """A teacher, whose predictions are learned besides the labels (`distillation_loss`).

    Quantized and frozen epochs learn from it, and so does the float network if the teacher is another.

    Attributes:
        teacher: `float`, the float network of the run itself; or a checkpoint of any kind whose network reads images of
            the same shape and tells the same classes apart.
        model: `module:function` of yours that builds the network of that checkpoint, where it is not `model.name`.
        weight: of the divergence from the teacher's softened predictions; that of the cross-entropy is 1.
        temperature: of the softened predictions.
    """

    teacher: Name = OWN_FLOAT
    model: Name | None = None
    weight: NotNegative = DISTILLATION_WEIGHT
    temperature: Temperature = DISTILLATION_TEMPERATURE

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        if self.model is not None and self.teacher == OWN_FLOAT:
            raise ValueError(f"model {excerpt(self.model)} with teacher {OWN_FLOAT!r}, which is built by model.name")
        return self
