"""Functions from uint8 images to logits that run the models of a checkpoint, to compare an exported file with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Predictor = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def checkpoint_predictors(path: Path, trusted_model: str | None = None) -> dict[str, Predictor]:
    """Return the predictors of a checkpoint by name.

    A frozen checkpoint gives `frozen PyTorch`. A quantized one gives `unfrozen PyTorch`, its fake quantization, and
    `frozen PyTorch`, the same frozen now: what an export of it writes; in `paper` placement, which cannot be frozen,
    `unfrozen PyTorch` alone.

    Args:
        path: the checkpoint.
        trusted_model: the user's function that builds its network, `module:function`, where it has one.

    Raises:
        CheckpointError: the checkpoint cannot be read, or holds a float network.
    """
    from torch import fx

    from qil_deploy.checkpoint import load_model
    from qil_deploy.errors import CheckpointError
    from qil_deploy.freezing import freeze, keeps_float
    from qil_deploy.training.models import model_builder

    info, model = load_model(path, model_builder(trusted_model))
    if info.kind == "float" or not isinstance(model, fx.GraphModule):
        raise CheckpointError(f"checkpoint {path} holds a float network; name the quantized or frozen one.")
    if info.kind == "frozen":
        return {"frozen PyTorch": model_predictor(model, info.preprocessing)}
    unfrozen = {"unfrozen PyTorch": model_predictor(model, info.preprocessing)}
    if keeps_float(model):
        return unfrozen
    return unfrozen | {"frozen PyTorch": model_predictor(freeze(model), info.preprocessing)}


def model_predictor(model: object, preprocessing: object) -> Predictor:
    """Return the predictor of a PyTorch model in evaluation mode."""
    import torch
    from torch import nn

    from qil_deploy.preprocessing import Preprocessing

    if not isinstance(model, nn.Module) or not isinstance(preprocessing, Preprocessing):
        raise TypeError("a predictor needs a torch module and its preprocessing")

    @torch.no_grad()
    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = model(torch.from_numpy(preprocessing.normalize(images))).numpy()
        return logits

    return predict
