"""Training: networks, data, recipes, the training loop and its stages, pictures of the results."""

from .distillation import distillation_loss
from .freed_memory import keep_freed_memory
from .optimizers import parameter_groups, recipe_optimizers, weight_parameters
from .oscillation import Oscillation

__all__ = [
    "Oscillation",
    "distillation_loss",
    "keep_freed_memory",
    "parameter_groups",
    "recipe_optimizers",
    "weight_parameters",
]
