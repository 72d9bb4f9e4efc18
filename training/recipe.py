"""Recipes: all settings of a training run, in one TOML file.

A recipe names a data set and a network, says how the float network is trained, then lists the quantized
stages in order, each of which starts where the last one ended. A stage with `frozen_epochs` ends in a side
branch: the model is frozen, trained for that many more epochs in the runtime's arithmetic, and saved for
export; the next stage starts from the unfrozen weights.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from qil_deploy.config import (
    DEFAULT_METHOD,
    GradientScaling,
    MethodName,
    Placement,
    QuantConfig,
    validation_sentences,
)
from qil_deploy.errors import ConfigError
from qil_deploy.untrusted_text import excerpt

from .recipe_sections import (
    OWN_FLOAT,
    AugmentationSection,
    DistillationSection,
    ModelSection,
    OptimizerSection,
    QuantizerOnlySection,
    Section,
    StageSection,
)
from .recipe_values import (
    LARGEST_IMAGE_SIDE,
    FolderName,
    Images,
    Name,
    Overrides,
    Statistics,
    Switch,
)


class Recipe(Section):
    """A whole run. See the files under `training/recipes/`.

    Attributes:
        name: of the run, and of its folder in `runs/` unless another is given.
        image_size: height and width to which images are brought; None keeps those of the data set.
        mean, std: of pixels in [0, 1]: one number of each for all channels, or one per channel; None takes those of the
            data set (`qil_deploy.preprocessing`).
        train_images: how many images to train on, the first ones; None: all. For data sets in memory.
        seed: of weights, order, augmentation and dropout.
        method: how quantizers learn (`QuantConfig`).
        train_gamma: learn the exponent of each weight transformer.
        gradient_scaling: how much the gradient of a rounding depends on the distance to the code (`QuantConfig`).
        returning_weights: pass the gradient on to weights outside of their interval, too (`QuantConfig`).
        allow_float: keep operations without an integer form in float.
        overrides: bits by layer-name pattern.
        float_training: needed unless there is `quantizer_only`.
        quantizer_only: keep the weights of a float checkpoint and learn intervals and output scales without labels.
        distillation: learn from a teacher besides the labels; None: from labels alone.
    """

    name: FolderName
    data: Name
    image_size: Annotated[int, Field(ge=1, le=LARGEST_IMAGE_SIDE, strict=True)] | None = None
    mean: Statistics | None = None
    std: Statistics | None = None
    train_images: Images | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0
    placement: Placement = "integer"
    method: MethodName = DEFAULT_METHOD
    train_gamma: Switch = False
    gradient_scaling: GradientScaling = 0.0
    returning_weights: Switch = False
    allow_float: Switch = False
    overrides: Overrides = Field(default_factory=dict)
    model: ModelSection
    augmentation: AugmentationSection = AugmentationSection()
    float_training: OptimizerSection = OptimizerSection(epochs=0)
    quantizer_only: QuantizerOnlySection | None = None
    distillation: DistillationSection | None = None
    stages: tuple[StageSection, ...] = ()

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages {excerpt(names)} repeat; give each stage other bits than the ones before")
        for stage in self.stages:
            self.quant_config(stage)
            if stage.frozen_epochs and self.placement != "integer":
                raise ValueError(
                    f"stage {stage.name} has frozen_epochs, but placement {self.placement!r} keeps float layers, "
                    "which cannot be frozen; use placement 'integer' or no frozen_epochs"
                )
        return self

    @model_validator(mode="after")
    def _check_statistics(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("one of mean and std without the other; give both, or neither for those of the data set")
        return self

    @model_validator(mode="after")
    def _check_distillation(self) -> Self:
        if self.distillation is not None and self.quantizer_only is not None:
            raise ValueError(
                "distillation with quantizer_only, whose float network is the teacher already and whose images have no "
                "labels; leave it out, and choose quantizer_only.loss and quantizer_only.temperature"
            )
        phases = {"float_training": self.float_training} | {stage.name: stage for stage in self.stages}
        changed = [
            f"{key} of {name}"
            for name, section in phases.items()
            for key in ("distillation_weight", "distillation_temperature")
            if getattr(section, key) is not None
        ]
        if changed and self.distillation is None:
            raise ValueError(f"{changed[0]} without the section distillation; add it, or leave the key out")
        if changed and changed[0].endswith("float_training") and self._would_teach_itself(self.float_training):
            raise ValueError(
                f"{changed[0]}, but the teacher is the float network itself; leave the key out, or name a checkpoint "
                "as distillation.teacher"
            )
        return self

    @model_validator(mode="after")
    def _check_where_weights_come_from(self) -> Self:
        if self.quantizer_only is None:
            if "float_training" not in self.model_fields_set:
                raise ValueError("float_training is missing; only a recipe with quantizer_only needs none")
            return self
        useless: list[str] = [
            key
            for key in ("float_training", "train_images", "mean", "std")
            if getattr(self, key) != type(self).model_fields[key].default  # recipe.json of a run has defaults, too
        ]
        useless += ["model.weights"] if self.model.weights is not None else []
        useless += [f"batchnorm_batches of {stage.name}" for stage in self.stages if stage.batchnorm_batches]
        useless += [f"oscillation of {stage.name}" for stage in self.stages if stage.oscillation != "none"]
        if useless:
            raise ValueError(
                f"{excerpt(', '.join(useless))} with quantizer_only, which keeps the weights, BatchNorm and "
                "preprocessing of quantizer_only.weights as they are; leave it out"
            )
        going_on = [stage.name for stage in self.stages[1:] if not stage.from_float]
        if self.quantizer_only.rounding == "compensated" and going_on:
            raise ValueError(
                f"stage {going_on[0]} goes on with weights that quantizer_only.rounding 'compensated' has rounded for "
                "the stage before; give each stage from_float = true"
            )
        return self

    def _would_teach_itself(self, section: OptimizerSection) -> bool:
        """Whether a phase trains the float network, and the float network is also the teacher."""
        own = self.distillation is not None and self.distillation.teacher == OWN_FLOAT
        return own and section is self.float_training

    def distillation_of(self, section: OptimizerSection) -> DistillationSection | None:
        """Return the distillation of one phase; None if it learns from labels alone."""
        if self.distillation is None or self._would_teach_itself(section):
            return None
        changes = {"weight": section.distillation_weight, "temperature": section.distillation_temperature}
        changed = {key: value for key, value in changes.items() if value is not None}
        found = self.distillation.model_copy(update=changed)
        return found if found.weight > 0 else None

    def quant_config(self, stage: StageSection) -> QuantConfig:
        """Return the quantization of one stage."""
        return QuantConfig(
            weight_bits=stage.weight_bits,
            activation_bits=stage.activation_bits,
            placement=self.placement,
            method=self.method,
            train_gamma=self.train_gamma,
            gradient_scaling=self.gradient_scaling,
            returning_weights=self.returning_weights,
            allow_float=self.allow_float,
            output_scales="without_batchnorm" if self.quantizer_only is None else self.quantizer_only.output_scales,
            overrides=self.overrides | stage.overrides,
        )


def recipe_from_dict(content: dict[str, Any], source: str) -> Recipe:
    """Validate the content of a recipe; `source` names it in errors."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise ConfigError(validation_sentences(f"recipe {source}", error)) from error
