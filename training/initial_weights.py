"""Weights that a float network starts from: torchvision's, a float checkpoint of ours, or a state_dict in a file.

Every tensor has to fit. Only the head, the last layer with parameters, may be left fresh, where the file was trained to
tell apart another number of classes and the user says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torchvision import models

from qil_deploy.checkpoint import METADATA_KEY, read_checkpoint
from qil_deploy.errors import CheckpointError, ConfigError

from .models import FROM_TORCHVISION

TORCHVISION = "torchvision"


def load_initial_weights(model: nn.Module, source: str, *, name: str, reset_head: bool = False) -> tuple[str, ...]:
    """Load weights into a float network, in place.

    Torchvision's weights were trained on images normalised per channel; ours have one scale for all channels (see
    `qil_deploy.preprocessing`), which a little training makes up for.

    Args:
        model: the network.
        source: `torchvision` (its default weights for the network `name`), or a file: `.safetensors` (a float
            checkpoint or a plain state_dict), `.pth` or `.pt` (a plain state_dict, read without running what it may
            hold besides).
        name: of the network, as recipes name it.
        reset_head: leave the tensors of the head as they are where their shapes differ.

    Returns:
        The names of the tensors that were left as they are.

    Raises:
        ConfigError: torchvision has no weights for `name`, or they cannot be downloaded.
        CheckpointError: the file is missing, damaged or holds something else, or tensors do not fit the network.
    """
    tensors = _from_torchvision(name) if source == TORCHVISION else _from_file(Path(source))
    expected = model.state_dict()
    # Files older than this buffer lack it; it counts training steps and decides nothing here.
    tensors = {key: value for key, value in expected.items() if key.endswith("num_batches_tracked")} | tensors
    differing = sorted(
        key
        for key in expected.keys() | tensors.keys()
        if key not in expected or key not in tensors or expected[key].shape != tensors[key].shape
    )
    head = _head(model)
    left_out = tuple(key for key in differing if key in head and key in tensors)
    refused = [key for key in differing if key not in left_out or not reset_head]
    if refused:
        raise CheckpointError(_sentence(source, expected, tensors, refused, only_head=len(left_out) == len(differing)))
    model.load_state_dict({**tensors, **{key: expected[key] for key in left_out}})
    return left_out


def _head(model: nn.Module) -> set[str]:
    """Return the names of the parameters of the last layer that has any."""
    layers = [
        name for name, module in model.named_modules() if next(module.parameters(recurse=False), None) is not None
    ]
    if not layers:
        return set()
    prefix = f"{layers[-1]}." if layers[-1] else ""
    return {prefix + name for name, _ in model.get_submodule(layers[-1]).named_parameters(recurse=False)}


def _sentence(
    source: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], names: list[str], *, only_head: bool
) -> str:
    def shape(tensors: Mapping[str, Tensor], name: str) -> str:
        return str(list(tensors[name].shape)) if name in tensors else "none"

    some = ", ".join(f"{name} (file {shape(found, name)}, network {shape(expected, name)})" for name in names[:4])
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    advice = (
        "they are the head; set reset_head to start it anew"
        if only_head
        else "choose weights of this network, with images of as many channels"
    )
    return f"the weights of {source} do not fit the network: {some}{more}; {advice}."


def _from_torchvision(name: str) -> dict[str, Tensor]:
    if name not in FROM_TORCHVISION:
        raise ConfigError(
            f"torchvision has no weights for the network {name!r}; it has some for {', '.join(FROM_TORCHVISION)}."
        )
    weights = models.get_model_weights(name).DEFAULT
    try:
        tensors: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # no network, a wrong checksum, and whatever damaged files raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"torchvision's weights of {name!r} could not be had ({reason}); without a network, put {weights.url} into "
            f"{torch.hub.get_dir()}/checkpoints, or name a file."
        ) from error
    # DenseNets were renamed since (norm.1 is norm1 now), and GoogLeNet's auxiliary classifiers serve training only.
    renamed = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2.", key): value for key, value in tensors.items()
    }
    return {key: value for key, value in renamed.items() if not key.startswith(("aux1.", "aux2."))}


def _from_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"weights {path} do not exist; name {TORCHVISION!r} or a .safetensors, .pth or .pt file.")
    if path.suffix == ".safetensors":
        return _from_safetensors(path)
    if path.suffix in {".pth", ".pt"}:
        return _from_torch(path)
    raise CheckpointError(f"weights {path} must be a .safetensors, .pth or .pt file.")


def _from_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            if METADATA_KEY not in (file.metadata() or {}):
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"weights {path} are damaged or truncated ({error}).") from error
    info, tensors = read_checkpoint(path)
    if info.kind != "float":
        raise CheckpointError(f"{path} is a {info.kind} checkpoint; a float network starts from a float one.")
    return tensors


def _from_torch(path: Path) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 - reads tensors only
    except Exception as error:  # damaged files raise errors of any kind
        raise CheckpointError(
            f"weights {path} are damaged, or hold more than tensors, which might run code, and are not read; save the "
            "state_dict alone."
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"weights {path} hold a {type(content).__name__}, not a state_dict; save that alone.")
    other = [str(key) for key, value in content.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if other or not content:
        found = f"{', '.join(other[:4])}, which are no tensors" if other else "nothing"
        raise CheckpointError(f"weights {path} hold {found}; save the state_dict alone.")
    return content
