"""Training: networks, data, recipes, and the loop that learns intervals and fine-tunes frozen models."""
