"""Initial weights of a float network: torchvision's, a float checkpoint of ours, or a state_dict in a file.

In other people's files the state_dict is searched for (`state_dicts`). Every tensor has to fit. Only the head,
the last layer with parameters, may be left fresh, if the file was trained for another number of classes and the user
allows it.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from qil_deploy.checkpoint import METADATA_KEY, DamagedFileError, read_checkpoint, read_contents, read_tensors
from qil_deploy.errors import CheckpointError, ConfigError
from qil_deploy.network import require_finite
from qil_deploy.untrusted_text import excerpt

from .build import FROM_TORCHVISION
from .state_dicts import FoundWeights, find_weights

TORCHVISION = "torchvision"
_SPARE_BYTES = 16 << 20  # of code and names, which some archives compress
_TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")


def load_initial_weights(
    model: nn.Module,
    source: str,
    *,
    name: str,
    reset_head: bool = False,
    tell: Callable[[str], object] = lambda _sentence: None,
) -> tuple[str, ...]:
    """Load weights into a float network, in place.

    Weights need images like those they were trained on: a recipe's `mean` and `std` say how these were normalised.

    Args:
        model: the network.
        source: `torchvision` (its default weights for the network `name`), or a file: `.safetensors` (a float
            checkpoint or a state_dict), or one of `torch.save` (`.pth`, `.pt`, `.bin`, `.ckpt`, `.tar`), read without
            running any code in it.
        name: of the network, as recipes name it.
        reset_head: keep the tensors of the head as they are if their shapes differ.
        tell: receives a sentence on anything that is not plainly a state_dict of this network.

    Returns:
        The names of the tensors that were left as they are.

    Raises:
        ConfigError: torchvision has no weights for `name`, or they cannot be downloaded.
        CheckpointError: the file is missing, damaged or holds something else, or tensors do not fit the network or are
            not finite.
    """
    expected = model.state_dict()
    if source == TORCHVISION:
        tensors = _from_torchvision(name)
    else:
        found = _from_file(Path(source), expected)
        tensors = found.tensors
        for note in found.notes:
            tell(note)
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
    fitting = {key: value for key, value in tensors.items() if key not in left_out}
    require_finite(fitting.items(), f"weights {source}", error=CheckpointError)
    model.load_state_dict({**fitting, **{key: expected[key] for key in left_out}})
    return left_out


def _head(model: nn.Module) -> set[str]:
    """Return the names of the parameters of the last layer with parameters."""
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

    some = ", ".join(
        f"{excerpt(name, 60)} (file {shape(found, name)}, network {shape(expected, name)})" for name in names[:4]
    )
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
    except Exception as error:  # no network, a wrong checksum, or anything damaged files raise
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


def _from_file(path: Path, expected: Mapping[str, Tensor]) -> FoundWeights:
    if not path.is_file():
        raise CheckpointError(f"weights {path} do not exist; name {TORCHVISION!r} or a .safetensors, .pth or .pt file.")
    if path.suffix == ".safetensors":
        return _from_safetensors(path, expected)
    if path.suffix in _TORCH_SUFFIXES:
        return find_weights(_read_torch(path), expected, str(path))
    raise CheckpointError(
        f"weights {path} must be a .safetensors, .pth or .pt file; {', '.join(_TORCH_SUFFIXES[2:])} are read like .pth."
    )


def _from_safetensors(path: Path, expected: Mapping[str, Tensor]) -> FoundWeights:
    try:
        ours = METADATA_KEY in read_contents(path).metadata
        tensors = {} if ours else read_tensors(path)
    except (DamagedFileError, OSError) as error:
        raise CheckpointError(f"weights {path} are damaged or truncated ({error}).") from error
    if not ours:
        return find_weights(tensors, expected, str(path))
    info, tensors = read_checkpoint(path)
    if info.kind != "float":
        raise CheckpointError(f"{path} is a {info.kind} checkpoint; a float network starts from a float one.")
    return FoundWeights(tensors=tensors, notes=())


def _read_torch(path: Path) -> Mapping[Any, object]:
    """Read a file of `torch.save` without running code.

    Raises:
        CheckpointError: it is damaged, holds more than plain data, or no dictionary.
    """
    _refuse_compressed(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 - reads tensors only
    except Exception as error:  # damaged files raise errors of any kind
        raise CheckpointError(f"weights {path} {_reason(error)}.") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"weights {path} hold a {type(content).__name__}, not a state_dict; save that alone.")
    return content


def _refuse_compressed(path: Path) -> None:
    """Refuse a compressed archive, which grows when it is read; torch.save compresses no tensors.

    Raises:
        CheckpointError: it is one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):  # not an archive, or a damaged one
        return
    if size > path.stat().st_size + _SPARE_BYTES:
        raise CheckpointError(
            f"weights {path} are damaged: {path.stat().st_size:,} bytes that would become {size:,}; torch.save does "
            "not compress tensors."
        )


def _reason(error: Exception) -> str:
    """Return why torch cannot read a file, and the remedy."""
    message = str(error)
    if "TorchScript" in message:
        return (
            "are a TorchScript archive, which is code, and are not read; save its weights: "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW)"
        )
    named = re.findall(r"GLOBAL ([\w.]+)", message)
    if named:
        return (
            f"hold more than tensors, which might run code, and are not read (an object of {excerpt(named[0], 80)}); "
            "save the weights alone, where you trust the file: torch.save(model.state_dict(), NEW)"
        )
    return "are damaged, or hold more than tensors, which might run code, and are not read; save the state_dict alone"
