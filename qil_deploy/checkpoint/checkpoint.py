"""Checkpoints: one safetensors file, whose header describes in JSON how to rebuild the model around the tensors.

Nothing in a checkpoint is executed: tensors are raw bytes, and the network is rebuilt by a function that the
caller hands in, from a name and plain arguments. Everything that the file says is checked before memory is taken for
it, and the tensors once they are loaded (`values`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from qil_deploy.config import QuantConfig
from qil_deploy.errors import CheckpointError, QilDeployError
from qil_deploy.files import write_bytes
from qil_deploy.integers import freeze_structure
from qil_deploy.network import (
    CONFIG,
    INPUT_GRID,
    FrozenModel,
    PreparedModel,
    QuantizedModel,
    measure_network,
    outputs_of,
    prepare_structure,
    shape_of,
    tensors_of,
    unwrapped,
)
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.untrusted_text import excerpt

from .info import METADATA_KEY, CheckpointInfo, read_header, refuse_damaged
from .safetensors_file import (
    Contents,
    DamagedFileError,
    TensorEntry,
    file_content,
    matches_digest,
    read_into,
    read_tensors,
)
from .values import check_values, scalars_of

LARGEST_RESULT: Final = 1 << 26
"""Values of any tensor of the network for one image; ResNet-18 has as many for an image of 2,048 pixels square."""
SPARE_VALUES: Final = 1 << 25
"""Values that a network may have beyond twice those of its file: of modules that it does not use."""

Builder = Callable[[str, dict[str, Any]], nn.Module]


def save_checkpoint(path: str | PathLike[str], info: CheckpointInfo, model: nn.Module) -> None:
    """Write the state of `model` and `info` to `path`, whole or not at all.

    Args:
        path: the file, `.safetensors`.
        info: what is said about the model: its kind, the function that builds its network, its quantization.
        model: float, from `prepare` or from `freeze`; what wraps it (`unwrap`) is left out.

    Raises:
        CheckpointError: `info` is about another kind of model, other bits or other preprocessing, or names no classes
            of a model that returns one row of logits.
        OutputError: `path` cannot be written.
    """
    network = unwrapped(model)
    _require_agreement(info, network)
    # The layers that write and read a grid share it in a frozen model; each name has its copy in the file.
    write_bytes(Path(path), file_content(network.state_dict(), {METADATA_KEY: info.model_dump_json()}))


def _require_agreement(info: CheckpointInfo, network: nn.Module) -> None:
    kind = "frozen" if isinstance(network, FrozenModel) else "float"
    kind = "quantized" if isinstance(network, PreparedModel) else kind
    if info.kind != kind:
        raise CheckpointError(f"info.kind is {info.kind!r}, but the model is {kind}; set it to that.")
    if not isinstance(network, QuantizedModel):
        return
    if info.config != network.meta[CONFIG]:
        raise CheckpointError(_differing_configs(info.config, network.meta[CONFIG]))
    if info.preprocessing != network.meta[INPUT_GRID]:
        raise CheckpointError(
            f"info.preprocessing is {info.preprocessing}, but the model was prepared with {network.meta[INPUT_GRID]}; "
            "set it to that."
        )
    outputs = [shape_of(node) for node in outputs_of(network.graph)]
    if not info.class_names and len(outputs) == 1 and len(outputs[0]) == 2:
        raise CheckpointError(
            f"info.class_names is empty, but the model returns {outputs[0][1]} logits; give a name for each of them."
        )


def _differing_configs(said: QuantConfig | None, prepared: QuantConfig) -> str:
    """List the fields of `info.config` that differ from the model's."""
    if said is None:
        return f"info.config is None, but the model was prepared with {prepared!r}; set it to that."
    names = [name for name in QuantConfig.model_fields if getattr(said, name) != getattr(prepared, name)]
    own, its = (", ".join(f"{name}={getattr(config, name)!r}" for name in names) for config in (said, prepared))
    return f"info.config has {own}, but the model was prepared with {its}; set them to that."


def read_checkpoint(path: str | PathLike[str]) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    """Read a checkpoint without building its model.

    Raises:
        CheckpointError: as `read_info`, or its bytes are not those that were written.
    """
    file = Path(path)
    info, _ = read_header(file)
    return info, _read_tensors(file)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return read_tensors(path)
    except (DamagedFileError, OSError) as error:
        refuse_damaged(path, error)


def load_model(path: str | PathLike[str], build: Builder) -> tuple[CheckpointInfo, nn.Module]:
    """Read a checkpoint and rebuild its model, in evaluation mode.

    Args:
        path: the checkpoint.
        build: called as `build(info.model_name, info.model_arguments)`, a string and a dictionary; returns the float
            network. For a network of one kind: `lambda name, arguments: Net(**arguments)`. It is called twice, the
            first time on torch's meta device, to learn the network's size before memory is taken for it.

    Raises:
        CheckpointError: as `read_checkpoint`, the tensors do not fit the network or contradict each other or the
            header, or the network is larger than the file allows.
    """
    file = Path(path)
    info, contents = read_header(file)
    _check_size(file, info, contents, build)
    model = assemble(info, build)
    _check_entries(model, contents.tensors, str(file))
    _check_logits(file, info, model)
    rebuilt = scalars_of(model)
    _read_into(model, file, contents)
    check_values(model, rebuilt, f"checkpoint {file}")
    return info, model.eval()


def _check_size(path: Path, info: CheckpointInfo, contents: Contents, build: Builder) -> None:
    """Refuse a network that is much larger than the file can hold, before memory is taken for it."""
    size = measure_network(lambda: build(info.model_name, info.model_arguments), info.preprocessing.shape)
    if size is None:  # then it is built without
        return
    if size.values > 2 * contents.values + SPARE_VALUES:
        raise CheckpointError(
            f"checkpoint {path} holds {contents.values:,} values, but its network {excerpt(info.model_name, 60)} with "
            f"{excerpt(info.model_arguments)} would have {_count(size.values)}; it was damaged or changed."
        )
    if size.largest_result is not None and size.largest_result > LARGEST_RESULT:
        raise CheckpointError(
            f"the network of checkpoint {path} makes a tensor of {_count(size.largest_result)} values from one image "
            f"of shape {list(info.preprocessing.shape)}; at most {LARGEST_RESULT:,} are possible."
        )


def _count(values: float) -> str:
    return f"{values:,}" if math.isfinite(values) else "countless"


def assemble(info: CheckpointInfo, build: Builder) -> nn.Module:
    """Build the network that `info` describes, quantized or frozen where it says so; its tensors come later.

    Raises:
        CheckpointError: the network cannot be built with the arguments of the checkpoint.
    """
    try:
        model = build(info.model_name, info.model_arguments)
    except QilDeployError:
        raise
    except Exception as error:  # any user code runs here, on arguments that come from a file
        raise CheckpointError(
            f"the checkpoint's network {excerpt(info.model_name, 60)} cannot be built with "
            f"{excerpt(info.model_arguments)}: {excerpt(f'{type(error).__name__}: {error}', 240)}."
        ) from error
    if info.config is None:
        return model
    prepared = prepare_structure(model, info.config, input_grid=info.preprocessing)
    return freeze_structure(prepared) if info.kind == "frozen" else prepared


def _read_into(model: nn.Module, path: Path, contents: Contents) -> None:
    """Read the tensors of a checkpoint, whose entries fit, straight into its model, without a second copy in memory."""
    tensors, own, second = model.state_dict(), dict[str, Tensor](), dict[str, str]()
    first_names: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in tensors.items():
        first = first_names.setdefault((tensor.data_ptr(), tensor.shape), name) if tensor.numel() else name
        if first == name:
            own[name] = tensor
        else:
            second[name] = first
    try:
        read_into(path, contents, own)
        for name, first in second.items():
            again = torch.empty_like(own[first])
            read_into(path, contents, {name: again})
            _require_same(str(path), {first: own[first], name: again})
        if not matches_digest(contents, tensors):
            raise DamagedFileError("its bytes are not those that were written")
    except (DamagedFileError, OSError) as error:
        refuse_damaged(path, error)


def _require_same(source: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse two tensors of a file that are one tensor in its model, but differ."""
    (first, one), (name, other) = tensors.items()
    if not torch.equal(one, other):
        raise CheckpointError(
            f"the tensors of {source} contradict each other: {first} and {name} are one tensor in its model, but not "
            "in the file."
        )


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load `tensors` into `model`; every name, dtype and shape has to fit.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape or dtype, or two names of one tensor of the
            model have different values; the model is unchanged.
    """
    _check_entries(model, {name: TensorEntry.of(tensor) for name, tensor in tensors.items()}, source)
    first_names: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in model.state_dict().items():
        first = first_names.setdefault((tensor.data_ptr(), tensor.shape), name) if tensor.numel() else name
        if first != name:
            _require_same(source, {first: tensors[first], name: tensors[name]})
    model.load_state_dict(dict(tensors))


def _check_entries(model: nn.Module, found: Mapping[str, TensorEntry], source: str) -> None:
    expected = {name: TensorEntry.of(tensor) for name, tensor in model.state_dict().items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        shapes = [
            str(list(entries[name].shape)) if name in entries else "none" for entries in (found, expected)
        ]  # fmt: skip
        what = "shape"
        if shapes[0] == shapes[1]:
            what, shapes = "dtype", [str(entries[name].dtype).removeprefix("torch.") for entries in (found, expected)]
        raise CheckpointError(
            f"the tensors of {source} do not fit its model: {len(wrong)} of {len(expected)} differ; '{excerpt(name)}', "
            f"for one, has {what} {excerpt(shapes[0], 60)} in the file and {shapes[1]} in the model."
        )


def _check_logits(path: Path, info: CheckpointInfo, model: nn.Module) -> None:
    """Compare the number of class names with the number of logits for a blank image, if logits are the only output."""
    if isinstance(model, fx.GraphModule):
        shapes = [shape_of(node) for node in outputs_of(model.graph)]
    else:
        shapes = _result_shapes(path, info, model.eval())
    if len(shapes) > 1 or len(shapes[0]) > 2:
        return
    shape = shapes[0]
    if shape != (1, len(info.class_names)):
        raise CheckpointError(
            f"checkpoint {path} has {len(info.class_names)} class names, but its network returns a tensor of shape "
            f"{list(shape)} for one image; one logit per class is needed."
        )


@torch.no_grad()
def _result_shapes(path: Path, info: CheckpointInfo, model: nn.Module) -> list[tuple[int, ...]]:
    try:
        result = model(example_input(info.preprocessing))
    except Exception as error:  # any user code runs here, on an image whose shape comes from a file
        raise CheckpointError(
            f"the network of checkpoint {path} does not run on an image of shape {list(info.preprocessing.shape)}: "
            f"{excerpt(f'{type(error).__name__}: {error}', 240)}."
        ) from error
    return [tuple(tensor.shape) for tensor in tensors_of(result)] or [()]


def example_input(preprocessing: Preprocessing) -> Tensor:
    """Return one blank image in the form of the network's input: float32 [1, C, H, W]."""
    return torch.zeros(1, *preprocessing.shape)
