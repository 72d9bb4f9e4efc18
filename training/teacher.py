"""The float network as the teacher of its quantized copy, for recipes with `quantizer_only`.

Weights, and BatchNorm with its statistics, stay those of a trained float network, bit for bit. What is learned are the
intervals, the steps of 8-bit ranges, one output scale per layer, and the exponents of weight transformers where the
recipe asks for them. They follow the float network on the same, unlabelled images: with its logits `f` and those of
the quantized network, `g`, the loss is one of

    squared error    mean over images and classes of (f - g)**2
    divergence       T**2 * mean over images of sum_k p_k * log(p_k / q_k)       p = softmax(f / T), q = softmax(g / T)

(`distillation`; T is the temperature). Labels are neither known nor read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qil_deploy.checkpoint import CheckpointInfo, load_model
from qil_deploy.errors import CheckpointError

from .distillation import divergence
from .models import model_builder
from .recipe import Recipe
from .recipe_sections import QuantizerOnlySection
from .run_state import Position


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The float network that is quantized.

    Attributes:
        checkpoint: its file.
        info: what the file says about it.
        model: in evaluation mode, without gradients.
    """

    checkpoint: Path
    info: CheckpointInfo
    model: nn.Module


def load_teacher(section: QuantizerOnlySection, recipe: Recipe) -> Teacher:
    """Read the float checkpoint that a recipe quantizes.

    Raises:
        CheckpointError: it is missing, damaged, not a float one, or of another network or data set than the recipe's.
    """
    path = Path(section.weights)
    info, model = load_model(path, model_builder(recipe.model.name))
    if info.kind != "float":
        raise CheckpointError(f"{path} is a {info.kind} checkpoint; quantizer_only.weights must name a float one.")
    found = {"model": info.model_name, "width": info.model_arguments.get("width"), "data": info.data}
    wanted = {"model": recipe.model.name, "width": recipe.model.width or found["width"], "data": recipe.data}
    differing = [key for key, value in wanted.items() if found[key] != value]
    if differing:
        key = differing[0]
        raise CheckpointError(
            f"{path} has {key} {found[key]!r}, but the recipe {wanted[key]!r}; name a checkpoint of the recipe's "
            "network and data set."
        )
    return Teacher(checkpoint=path, info=info, model=model.requires_grad_(False))


class TeacherLoss:
    """Distance from the float network's logits on the same images (module docstring); labels are not used."""

    def __init__(self, teacher: nn.Module, section: QuantizerOnlySection) -> None:
        self.teacher = teacher
        self.section = section

    def __call__(self, logits: Tensor, x: Tensor, _labels: Tensor, _position: Position) -> Tensor:
        """Return the loss of one batch, a scalar."""
        with torch.no_grad():
            expected = self.teacher(x.clone())  # its first layer may write in place
        if self.section.loss == "squared_error":
            return F.mse_loss(logits, expected)
        return divergence(logits, expected, self.section.temperature)
