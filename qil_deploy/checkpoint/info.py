"""Metadata of a checkpoint: how to rebuild the model around its tensors, and the data it was trained on."""

from __future__ import annotations

import json
import math
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, model_validator

from qil_deploy.config import QuantConfig, validation_sentences
from qil_deploy.errors import CheckpointError
from qil_deploy.preprocessing import Preprocessing
from qil_deploy.strict_json import parse_json
from qil_deploy.untrusted_text import excerpt

from .safetensors_file import Contents, DamagedFileError, read_contents

SCHEMA: Final = 1
METADATA_KEY: Final = "qil_deploy"

LARGEST_SIDE: Final = 1 << 16
LARGEST_IMAGE: Final = 1 << 24
"""Values of one image: 2,364 pixels square in colour."""

_OF_LONE_NORMS: Final = "_input.weight"
"""In the names of tensors of what carries a lone BatchNorm or ReLU (`network.isolate`), except in `paper` placement."""

Text = Annotated[str, Field(max_length=600)]


class CheckpointInfo(BaseModel):
    """Metadata of a checkpoint.

    Attributes:
        schema_version: version of this format; readers refuse others.
        kind: `float`; `quantized` (intervals learned, fake quantization); `frozen` (integer arithmetic).
        model_name, model_arguments: what the builder is called with. Arguments `in_channels` and `num_classes`, if any,
            are the channels of the images and the number of class names.
        config: the quantization; None for `float`.
        preprocessing: from uint8 image to input; at most `LARGEST_IMAGE` values.
        data: name of the data set.
        class_names: one per logit; any number or none for networks that return maps or several tensors.
        metrics: finite figures worth keeping; those whose names begin with `accuracy` in percent, `test_images` and
            those that begin with `changed_predictions` whole numbers.

    Raises:
        pydantic.ValidationError: a value that it cannot have, a line for each; a ValueError.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    schema_version: Literal[1] = SCHEMA
    kind: Literal["float", "quantized", "frozen"]
    model_name: Text
    model_arguments: dict[str, Any]
    config: QuantConfig | None
    preprocessing: Preprocessing
    data: Text
    class_names: tuple[Text, ...]
    metrics: dict[Text, Annotated[float, Field(allow_inf_nan=False)]]

    @field_serializer("preprocessing")
    def _only_what_is_said(self, preprocessing: Preprocessing) -> dict[str, Any]:
        return preprocessing.metadata()

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if (self.config is None) != (self.kind == "float"):
            having = "none" if self.config is None else "one"
            raise ValueError(f"kind {self.kind!r} with {having} as config; float checkpoints have none, others one")
        if self.kind == "frozen" and self.config is not None and self.config.placement != "integer":
            raise ValueError(f"kind 'frozen' with placement {self.config.placement!r}, which cannot be frozen")
        return self

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        shape = self.preprocessing.shape
        if max(shape) > LARGEST_SIDE or math.prod(shape) > LARGEST_IMAGE:
            raise ValueError(
                f"preprocessing: an image of shape {excerpt(list(shape), 60)}; at most {LARGEST_IMAGE:,} values are "
                "possible"
            )
        if not self.class_names:
            classes = self.model_arguments.get("num_classes", 1)
            if type(classes) is not int or not 1 <= classes <= LARGEST_SIDE:
                raise ValueError(
                    f"model_arguments: num_classes is {excerpt(classes, 40)}, not a whole number up to {LARGEST_SIDE:,}"
                )
        counts = {"in_channels": shape[0]} | ({"num_classes": len(self.class_names)} if self.class_names else {})
        for name, expected in counts.items():
            found = self.model_arguments.get(name, expected)
            if type(found) is not int or found != expected:
                what = "channels in preprocessing" if name == "in_channels" else "class names"
                raise ValueError(f"model_arguments: {name} is {excerpt(found, 40)}, but there are {expected} {what}")
        return self

    @model_validator(mode="after")
    def _check_metrics(self) -> Self:
        for name, value in self.metrics.items():
            if name.startswith("accuracy") and not 0 <= value <= 100:
                raise ValueError(f"metrics: {excerpt(name, 60)} is {value:g}, not a percentage")
            if name.startswith(("test_images", "changed_predictions")) and not (0 <= value < 2**53 and value % 1 == 0):
                raise ValueError(f"metrics: {excerpt(name, 60)} is {value:g}, not a count")
        return self


def read_info(path: str | PathLike[str]) -> CheckpointInfo:
    """Read the information in a checkpoint, without its tensors.

    Raises:
        CheckpointError: missing, damaged, truncated, not a checkpoint of this project, or of another schema.
    """
    return read_header(Path(path))[0]


def read_header(path: Path) -> tuple[CheckpointInfo, Contents]:
    """Read the information in a checkpoint, and where its tensors are in the file; errors as for `read_info`."""
    if path.is_dir():
        raise CheckpointError(f"checkpoint {path} is a folder; name a .safetensors file.")
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; train one with: python -m qil_deploy train RECIPE.")
    try:
        contents = read_contents(path)
    except (DamagedFileError, OSError) as error:
        refuse_damaged(path, error)
    if METADATA_KEY not in contents.metadata:
        raise CheckpointError(f"{path} is a safetensors file, but not a checkpoint that qil_deploy wrote.")
    return _parse_info(path, contents), contents


def _parse_info(path: Path, contents: Contents) -> CheckpointInfo:
    text = contents.metadata[METADATA_KEY]
    try:
        content = parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"the header of checkpoint {path} is damaged: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"the header of checkpoint {path} is damaged: it is no JSON object.")
    version = content.get("schema_version")
    if type(version) is not int or version != SCHEMA:
        raise CheckpointError(
            f"checkpoint {path} has schema version {excerpt(repr(version), 40)}; this version of qil_deploy reads "
            f"{SCHEMA}."
        )
    config = content.get("config")
    if isinstance(config, dict) and (older := _of_older_versions(config, contents)):
        content["config"] = older | config
        text = json.dumps(content)
    try:
        return CheckpointInfo.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise CheckpointError(validation_sentences(f"the header of checkpoint {path} is damaged", error)) from error


def _of_older_versions(config: dict[str, Any], contents: Contents) -> dict[str, Any]:
    """Return the config entries that checkpoints of older versions lack."""
    added: dict[str, Any] = {}
    if config.get("allow_float") is True and "float_scales" not in config:
        added |= {"float_gates": True, "float_scales": True}
    if config.get("allow_float") is True and "float_rows" not in config:
        added["float_rows"] = True
    lone_norms = config.get("placement") == "paper" or any(_OF_LONE_NORMS in name for name in contents.tensors)
    if "norms_apart" not in config and lone_norms:
        added["norms_apart"] = True
    return added


def refuse_damaged(path: Path, error: Exception) -> NoReturn:
    """Raise CheckpointError for a file that could not be read to its end."""
    raise CheckpointError(
        f"checkpoint {path} is damaged or truncated ({error}); restore it from a copy or train again."
    ) from error
