"""Functions from uint8 images to outputs or codes that run a checkpoint's models, for comparison with a file."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qil_deploy.slow_imports import loading

if TYPE_CHECKING:
    from torch import Tensor, fx

    from qil_deploy.checkpoint import CheckpointInfo

Predictor = Callable[[NDArray[np.uint8]], dict[str, NDArray[np.float32]]]
"""From uint8 images to outputs by name; codes are the floats that they stand for."""


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
    with loading("PyTorch"):
        from qil_deploy.integers import freeze
        from qil_deploy.network import keeps_float

    info, model = _load_quantized(path, trusted_model)
    if info.kind == "frozen":
        return {"frozen PyTorch": model_predictor(model, info.preprocessing)}
    unfrozen = {"unfrozen PyTorch": model_predictor(model, info.preprocessing)}
    if keeps_float(model):
        return unfrozen
    return unfrozen | {"frozen PyTorch": model_predictor(freeze(model), info.preprocessing)}


def model_predictor(model: object, preprocessing: object) -> Predictor:
    """Return the predictor of a prepared or frozen model in evaluation mode."""
    import torch
    from torch import fx

    from qil_deploy.network import returned_of, tensors_of
    from qil_deploy.preprocessing import Preprocessing

    if not isinstance(model, fx.GraphModule) or not isinstance(preprocessing, Preprocessing):
        raise TypeError("a predictor needs a quantized model and its preprocessing")

    @torch.no_grad()
    def predict(images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        tensors = tensors_of(model(torch.from_numpy(preprocessing.normalize(images))))
        return {name: x.numpy() for name, x in zip(returned_of(model.graph).names, tensors, strict=True)}

    return predict


def frozen_codes(
    path: Path, trusted_model: str | None = None
) -> Callable[[NDArray[np.uint8]], dict[str, NDArray[Any]]]:
    """Return a function from uint8 images to every code of `frozen PyTorch`, by its name in the exported graph.

    The checkpoint is loaded at the first call: codes are asked for only where logits differ.

    Args:
        path: the checkpoint, frozen, or quantized and frozen here.
        trusted_model: as in `checkpoint_predictors`.
    """

    @cache
    def load() -> tuple[CheckpointInfo, fx.GraphModule]:
        from qil_deploy.integers import freeze

        info, model = _load_quantized(path, trusted_model)
        return info, model if info.kind == "frozen" else freeze(model)

    def read(images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        import torch

        info, frozen = load()
        return record_codes(frozen, torch.from_numpy(info.preprocessing.normalize(images)))

    return read


def _load_quantized(path: Path, trusted_model: str | None) -> tuple[CheckpointInfo, fx.GraphModule]:
    from torch import fx

    from qil_deploy.checkpoint import load_model
    from qil_deploy.errors import CheckpointError
    from qil_deploy.training.models import model_builder

    info, model = load_model(path, model_builder(trusted_model))
    if info.kind == "float" or not isinstance(model, fx.GraphModule):
        raise CheckpointError(f"checkpoint {path} holds a float network; name the quantized or frozen one.")
    return info, model


def record_codes(model: fx.GraphModule, x: Tensor) -> dict[str, NDArray[Any]]:
    """Run a frozen model; return what every module returns: codes as uint8, floats of outputs as float32."""
    import torch
    from torch import fx

    from qil_deploy.export.capture import tensor_names
    from qil_deploy.integers import FrozenModule

    names = tensor_names(model)
    codes: dict[str, NDArray[Any]] = {}
    real: set[fx.Node] = set()

    class Recorder(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:  # noqa: ANN401 - as in the base class
            result = super().run_node(node)
            if node in names:
                module = model.get_submodule(str(node.target))
                makes_logits = isinstance(module, FrozenModule) and module.y is None
                if makes_logits or real.intersection(node.all_input_nodes):
                    real.add(node)
                codes[names[node]] = result.numpy() if node in real else result.numpy().astype(np.uint8)
            return result

    with torch.no_grad():
        Recorder(model).run(x)
    return codes
