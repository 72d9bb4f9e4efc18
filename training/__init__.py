"""Training: networks, data, recipes, the training loop and its stages, pictures of what was learned."""

from .optimizers import parameter_groups, recipe_optimizers, weight_parameters

__all__ = ["parameter_groups", "recipe_optimizers", "weight_parameters"]
