"""Checkpoints: one safetensors file, whose header says in JSON how to rebuild the model around the tensors.

Nothing in a checkpoint is executed: tensors are raw bytes, and the network is rebuilt by a function that the
caller hands in, from a name and plain arguments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .config import QuantConfig, validation_sentences
from .errors import CheckpointError
from .files import write_bytes
from .freezing import freeze_structure
from .preparation import prepare_structure
from .preprocessing import Preprocessing

SCHEMA: Final = 1
METADATA_KEY: Final = "qil_deploy"

Builder = Callable[[str, dict[str, Any]], nn.Module]


class CheckpointInfo(BaseModel):
    """What a checkpoint says about its tensors.

    Attributes:
        schema_version: version of this format; readers refuse others.
        kind: `float`; `quantized` (intervals learned, fake quantization); `frozen` (integer arithmetic).
        model_name, model_arguments: what the builder is called with.
        config: the quantization; None for `float`.
        preprocessing: from uint8 image to input.
        data: name of the data set.
        class_names: one per logit.
        metrics: figures worth keeping, such as accuracies in percent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    schema_version: Literal[1] = SCHEMA
    kind: Literal["float", "quantized", "frozen"]
    model_name: str
    model_arguments: dict[str, Any]
    config: QuantConfig | None
    preprocessing: Preprocessing
    data: str
    class_names: tuple[str, ...]
    metrics: dict[str, float]


def save_checkpoint(path: Path, info: CheckpointInfo, model: nn.Module) -> None:
    """Write the state of `model` and `info` to `path`, whole or not at all.

    Raises:
        OutputError: `path` cannot be written.
    """
    # The layers that write and read a grid share it in a frozen model; safetensors wants no sharing.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    write_bytes(path, save(tensors, metadata={METADATA_KEY: info.model_dump_json()}))


def read_checkpoint(path: Path) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    """Read a checkpoint without building its model.

    Raises:
        CheckpointError: missing, damaged, truncated, not a checkpoint of this project, or of another schema.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; train one with: python -m qil_deploy train RECIPE.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {path} is damaged or truncated ({error}); restore it from a copy or train again."
        ) from error
    if METADATA_KEY not in metadata:
        raise CheckpointError(f"{path} is a safetensors file, but not a checkpoint that qil_deploy wrote.")
    return _parse_info(path, metadata[METADATA_KEY]), tensors


def _parse_info(path: Path, text: str) -> CheckpointInfo:
    try:
        content = json.loads(text)
        version = content.get("schema_version")
    except (json.JSONDecodeError, AttributeError) as error:
        raise CheckpointError(f"the header of checkpoint {path} is damaged: {error}.") from error
    if version != SCHEMA:
        raise CheckpointError(
            f"checkpoint {path} has schema version {version!r}; this version of qil_deploy reads {SCHEMA}."
        )
    try:
        return CheckpointInfo.model_validate(content)
    except ValidationError as error:
        raise CheckpointError(validation_sentences(f"the header of checkpoint {path} is damaged", error)) from error


def load_model(path: Path, build: Builder) -> tuple[CheckpointInfo, nn.Module]:
    """Read a checkpoint and rebuild its model, in evaluation mode.

    Args:
        path: the checkpoint.
        build: called with `model_name` and `model_arguments`; returns the float network.

    Raises:
        CheckpointError: as `read_checkpoint`, or the tensors do not fit the network.
    """
    info, tensors = read_checkpoint(path)
    model = assemble(info, build)
    load_tensors(model, tensors, str(path))
    return info, model.eval()


def assemble(info: CheckpointInfo, build: Builder) -> nn.Module:
    """Build the network that `info` describes, quantized or frozen where it says so; its tensors come later."""
    model = build(info.model_name, info.model_arguments)
    if info.config is None:
        return model
    prepared = prepare_structure(model, info.config, input_grid=info.preprocessing)
    return freeze_structure(prepared) if info.kind == "frozen" else prepared


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load `tensors` into `model`; every name and shape has to fit.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"the tensors of {source} do not fit its model: {len(wrong)} of {len(expected)} differ; {name!r}, for one, "
            f"has shape {found.get(name, 'none')} in the file and {expected.get(name, 'none')} in the model."
        )
    model.load_state_dict(dict(tensors))


def example_input(preprocessing: Preprocessing) -> Tensor:
    """Return one blank image as the network sees it: float32 [1, C, H, W]."""
    return torch.zeros(1, *preprocessing.shape)
