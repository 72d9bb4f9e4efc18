"""Training: networks, data, recipes, the training loop and its stages, pictures of what was learned."""
